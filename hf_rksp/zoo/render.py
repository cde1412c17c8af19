"""Renders every page of the zoo from its JSON files alone; equal files give equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from hf_rksp.errors import InputError
from hf_rksp.files import put_files
from hf_rksp.zoo.manifest import ZooModel, read_manifest
from hf_rksp.zoo.pages.index import index_files
from hf_rksp.zoo.pages.model import page_files
from hf_rksp.zoo.parquet import model_card_metadata, table_files
from hf_rksp.zoo.shelf import Entry, Shelf, read_shelf

MANIFESTS = "manifests"
#: The manifest that CI runs; its models are also in the others.
CI = "ci.json"


def all_models(folder: Path) -> tuple[ZooModel, ...]:
    """The models of every manifest in ``folder``/manifests, in the order of the file names.

    Raises:
        InputError: there is no manifest, or two manifests give different models one id.
    """
    models: dict[str, ZooModel] = {}
    paths = sorted((folder / MANIFESTS).glob("*.json"), key=lambda path: (path.name == CI, path.name))
    if not paths:
        raise InputError(f"folder={str(folder)!r} has no {MANIFESTS}/*.json: pass the zoo_reports of a clone")
    for path in paths:
        for model in read_manifest(path).models:
            if models.setdefault(model.id, model) != model:
                raise InputError(
                    f"manifest={str(path)!r}: id={model.id!r} is another model in another manifest: rename one"
                )
    return tuple(models.values())


def render_zoo(folder: Path, say: Callable[[str], None] = lambda text: None) -> Shelf:
    """Write the page of every model, the index, the comparison and the parquet files; returns their source.

    Raises:
        InputError, SchemaError: a file cannot be read; nothing was written.
    """
    shelf = read_shelf(folder, all_models(folder))
    pages: dict[str, dict[str, bytes]] = {}
    for entry in shelf.entries:
        say(f"rendering {entry.model.id}")
        pages[entry.model.id] = rendered(entry)
    files = {f"{name}/{file}": content for name, page in pages.items() for file, content in page.items()}
    files |= index_files(shelf) | table_files(shelf)
    changed = {name: content for name, content in files.items() if not _same(folder / name, content)}
    for parent in sorted({(folder / name).parent for name in changed}):
        parent.mkdir(parents=True, exist_ok=True)
    put_files(changed, folder)
    for name, page in pages.items():
        _clear(folder / name, page)
    say(f"{len(changed)} of {len(files)} files changed")
    return shelf


def rendered(entry: Entry) -> dict[str, bytes]:
    """The files of a model's folder that are rendered from its audits."""
    files = page_files(entry)
    if entry.report is not None:
        files["model-card.yaml"] = model_card_metadata(entry).encode()
    return files


def _clear(folder: Path, files: Mapping[str, bytes]) -> None:
    """Delete pages and figures whose audit no longer exists."""
    for path in [*folder.glob("report.*"), *folder.glob("model-card.yaml"), *folder.glob("figures/*.svg")]:
        if str(path.relative_to(folder)) not in files and path.suffix not in (".json", ".png"):
            path.unlink()


def _same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def weight(folder: Path) -> dict[str, int]:
    """Bytes of the index, and of everything."""
    everything = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"index.html": (folder / "index.html").stat().st_size, "all": everything}
