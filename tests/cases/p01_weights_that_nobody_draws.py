"""A user audits a new architecture from its configuration: ``rksp audit --init apertus.json --seed 42``.

Some modules fill their parameters in their own ``__init__`` (here the activation of Apertus, xIELU). What happens afterwards:
the model is the one that ``AutoModel.from_config`` makes, so the numbers are of its size; and the same command gives the same
numbers again, because a seed names one model. A refusal that names what cannot be drawn is right too.
"""

from common import *

SIZES = {
    "vocab_size": 600,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def main(expect):
    file = config_file({"model_type": "apertus", **SIZES})
    own = built(transformers.AutoModel.from_config, transformers.AutoConfig.for_model("apertus", **SIZES)).eval()
    usual = [layer.spectral_radius for layer in profile(own, {"input_ids": ids(16, 64, 600)}, rank=32)]
    found = []
    for byte in ("1", "200"):  # what glibc fills fresh memory with: nothing may depend on it
        out = tempfile.mkdtemp()
        rest = ("--groups", 0, "--rank", 32, "--out", out, "--formats", "json", "--quiet")
        done = rksp("audit", "--init", file, "--seed", 42, *rest, env={"MALLOC_PERTURB_": byte})
        if done.refused:
            expect(
                re.search(r"alpha|act_fn|xielu|drawn|initiali", done.err, re.I),
                f"refused without its reason: {done.last}",
            )
            return
        if not expect(done.code == 0, done.last):
            return
        found.append([layer["spectral_radius"] for layer in report(out)["layers"]])
    expect(found[0] == found[1], f"the same command twice: radius {found[0]} and {found[1]}")
    near = all(u / 3 < r < u * 3 for u, r in zip(usual, found[0], strict=True))
    expect(near, f"radius {found[0]}; the model that transformers makes has {usual}")


run("P01", main)
