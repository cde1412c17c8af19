"""A user audits a folder whose weights are there, but not as the loader wants them: shards without an index, a variant
(``model.fp16.safetensors``), ``consolidated.safetensors``, a pointer of Git LFS, a web page saved as weights.

What happens afterwards: the audit runs, or an error names the file that is there and what is wrong with it. It never says that
the folder has no weights, nor sends the user to random weights.
"""

from common import *


def folder(spoil):
    path = Path(tempfile.mkdtemp())
    llama(vocab_size=600).save_pretrained(path)
    own_tokenizer().save_pretrained(path)
    spoil(path, path / "model.safetensors")
    return path


def shards(path, file):
    file.unlink()
    llama(vocab_size=600).save_pretrained(path, max_shard_size="60KB")
    (path / "model.safetensors.index.json").unlink()


CASES = {
    "shards without an index": (shards, r"index|model-0000"),
    "variant fp16": (lambda path, file: file.rename(path / "model.fp16.safetensors"), r"fp16"),
    "consolidated": (lambda path, file: file.rename(path / "consolidated.safetensors"), r"consolidated"),
    "Git LFS pointer": (
        lambda path, file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        r"lfs|pointer",
    ),
    "web page": (
        lambda path, file: file.write_text("<!doctype html><html></html>"),
        r"html|not a safetensors|header|corrupt|damaged",
    ),
}


def main(expect):
    for name, (spoil, word) in CASES.items():
        path = folder(spoil)
        seen = attempt(lambda path=path: load(path))
        text = seen.text.replace(str(path), "")
        good = seen.ran or (
            seen.refused and re.search(word, text, re.I) and "has no weights" not in text and "--init" not in text
        )
        expect(good, f"{name}: {seen.kind}: {text[:200]}")


run("P35", main)
