"""A user audits a RoBERTa folder with its own tokenizer: its table of 514 positions takes 512 tokens, because two places are before the first.

What happens afterwards: ``--seq-len 512`` runs; 513 and 514 are refused before the model runs, naming ``--seq-len`` or 512.
"""

from common import *


def main(expect):
    folder = Path(tempfile.mkdtemp())
    values = {key: value for key, value in ROBERTA.items() if key != "model_type"}
    built(transformers.RobertaModel, transformers.RobertaConfig(**{**values, "vocab_size": 600})).save_pretrained(
        folder
    )
    own_tokenizer().save_pretrained(folder)
    for n in (512, 513, 514):
        rest = ("--tokens", 4 * n, "--groups", 0, "--out", tempfile.mkdtemp(), "--formats", "json", "--quiet")
        done = rksp("audit", folder, "--seq-len", n, *rest)
        if n == 512:
            expect(done.code == 0, f"512: {done.last}")
        else:
            expect(done.refused and re.search(r"seq.len|512", done.err), f"{n}: {done.last}")


run("P33", main)
