"""A user passes a config.json that transformers itself saved to ``rksp audit --init``. It holds an infinite number (Mamba-2 kin).

What happens afterwards: the file is read as its folder is.
"""

from common import *

COMMON = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2}
HYBRID = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
}
MODELS = {
    "mamba2": {**COMMON, "num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8},
    "falcon_h1": {**COMMON, **HYBRID, "head_dim": 8, "mamba_d_ssm": 64},
}


def main(expect):
    for name, values in MODELS.items():
        folder = tempfile.mkdtemp()
        transformers.AutoConfig.for_model(name, **values).save_pretrained(folder)
        rest = (
            "--tokens",
            512,
            "--seq-len",
            64,
            "--groups",
            0,
            "--out",
            tempfile.mkdtemp(),
            "--formats",
            "json",
            "--quiet",
        )
        if name == "mamba2":
            whole = rksp("audit", "--init", folder, *rest)
            expect(whole.code == 0, f"{name}, the folder: {whole.last}")
        file = rksp("audit", "--init", Path(folder, "config.json"), *rest)
        expect(file.code == 0, f"{name}, the file: {file.last}")


run("P29", main)
