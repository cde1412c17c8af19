"""A user audits a pretrained folder whose tokenizer this machine cannot read: a file cut short, a newer format, a broken model.

What happens afterwards: the audit is refused with an error that speaks of the tokenizer, or it goes on with a warning on
standard error. It never feeds the ids of another tokenizer to a pretrained model without a word, and no report says that the
folder has no tokenizer when it has one.
"""

from common import *

GOOD = own_tokenizer()


def folder(spoil):
    path = Path(tempfile.mkdtemp())
    llama(vocab_size=600).save_pretrained(path)
    GOOD.save_pretrained(path)
    spoil(path)
    return path


def cut(path):
    file = path / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8")[:5000], encoding="utf-8")


def newer(path):
    values = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    values["model"]["type"] = "BPE2"
    (path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")


def sentencepiece(path):
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    values = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    (path / "tokenizer_config.json").write_text(
        json.dumps({**values, "tokenizer_class": "LlamaTokenizer"}), encoding="utf-8"
    )


def main(expect):
    for name, spoil in (
        ("whole", lambda path: None),
        ("cut short", cut),
        ("newer format", newer),
        ("broken model", sentencepiece),
    ):
        out = tempfile.mkdtemp()
        done = rksp(
            "audit", folder(spoil), "--tokens", 512, "--groups", 0, "--out", out, "--formats", "json", "--quiet"
        )
        if name == "whole":
            expect(done.code == 0, f"a whole folder: {done.last}")
            continue
        expect(not done.crashed, f"{name}: {done.last}")
        if done.code == 0:
            said = tokenizer_of(report(out))
            expect("tokenizer" in done.err.lower(), f"{name}: exit 0 and no warning; the report says {said[:90]!r}")
            expect("no tokenizer here" not in said, f"{name}: the report says {said[:90]!r}")
        else:
            expect("tokenizer" in done.err.lower(), f"{name}: refused without a word of the tokenizer: {done.last}")


run("P03", main)
