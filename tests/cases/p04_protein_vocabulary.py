"""A user audits a protein model (ESM) of 33 letters, saved with its own tokenizer, and passes no text.

What happens afterwards: the default text is English, which this tokenizer does not read, so the audit is refused before any
work and asks for ``--text``. With ``--text proteins.txt`` it runs, with the model's own tokenizer.
"""

from common import *

LETTERS = "LAGVSERTIDPKQNFYMHWC"


def main(expect):
    path = Path(tempfile.mkdtemp())
    vocabulary = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    config = transformers.EsmConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        pad_token_id=1,
        mask_token_id=len(vocabulary) - 1,
        position_embedding_type="rotary",
    )
    built(transformers.EsmForMaskedLM, config).save_pretrained(path)
    transformers.EsmTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    proteins = Path(tempfile.mkdtemp(), "proteins.txt")
    rows = ("".join(LETTERS[i] for i in ids(1, 300, 25, seed)[0] - 5) for seed in range(60))
    proteins.write_text("\n".join(rows))
    out = tempfile.mkdtemp()
    rest = ("--groups", 0, "--out", out, "--formats", "json", "--quiet")
    bare = rksp("audit", path, *rest)
    if expect(
        bare.code != 0, f"without --text: exit 0 with {tokenizer_of(report(out))[:100] if bare.code == 0 else ''!r}"
    ):
        expect(bare.refused and "--text" in bare.err, f"without --text: {bare.last}")
    told = rksp("audit", path, "--text", proteins, *rest)
    if expect(told.code == 0, f"with --text: {told.last}"):
        expect("Esm" in tokenizer_of(report(out)), f"with --text: {tokenizer_of(report(out))[:100]}")


run("P04", main)
