"""Files that are not what their name says: pointers of Git LFS, web pages saved in place of a download, cut archives."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

_AGAIN = "download it again, for example with `hf download`"
#: What files begin with that are of another kind.
_MAGIC = (
    (b"\x1f\x8b", "is a gzip archive: unpack it"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it"),
    (b"Rar!", "is a rar archive: unpack it"),
    (b"%PDF", f"is a PDF: {_AGAIN}"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes it"),
)
_PAGE = re.compile(
    rb"\s*(<\?xml[^>]*>)?\s*(<!--.*?-->)?\s*<(!doctype|html|head|body|error)\b", re.IGNORECASE | re.DOTALL
)
#: Encodings that JSON does not have, by the mark in front.
_MARKS = (
    (b"\xef\xbb\xbf", "begins with a byte order mark, which JSON does not have: save it as UTF-8 without one"),
    (b"\xff\xfe", "is UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text: save it as UTF-8"),
)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")


def damage(path: Path) -> str | None:
    """What is wrong with a file, seen from its first bytes and in words that follow its name; ``None`` if nothing is."""
    try:
        if not path.exists():
            return "is a link to a file that is not there: copy the file itself" if path.is_symlink() else None
        if path.is_dir():
            return None
        with path.open("rb") as stream:
            start = stream.read(1024)
    except OSError as error:
        return f"cannot be read ({error.strerror}): see its permissions"
    if not start:
        return f"is empty: {_AGAIN}"
    if start.startswith(b"version https://git-lfs"):
        return (
            "is a pointer of Git LFS and not the file itself: run `git lfs pull` in that folder, or download it again"
        )
    if _PAGE.match(start):
        return f"is a web page (HTML) saved under that name: {_AGAIN}"
    for magic, words in _MAGIC:
        if start.startswith(magic) and not (magic == b"\x89HDF" and path.suffix == ".h5"):
            return words
    for mark, words in _MARKS:
        if path.suffix == ".json" and start.startswith(mark):
            return words
    if path.suffix not in _WEIGHTS:
        return None
    if start.startswith(b"PK") and path.suffix != ".safetensors" and not zipfile.is_zipfile(path):
        return f"is cut short, it may be half-written: {_AGAIN}"
    if start.startswith(b"PK") and path.suffix == ".safetensors":
        return "is no safetensors file but one of torch.save: rename it to pytorch_model.bin"
    if _is_text(start):
        return f"is text ({start[:40].decode('ascii', 'replace').strip()!r}) and holds no weights: {_AGAIN}"
    return None


def _is_text(start: bytes) -> bool:
    """A message such as `Entry not found`, or JSON: no format of weights begins with nothing but printable ASCII."""
    return all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
