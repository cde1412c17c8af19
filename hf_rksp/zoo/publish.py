"""Pushes the zoo to a dataset repository on the Hub."""

from __future__ import annotations

from pathlib import Path

from hf_rksp.errors import InputError, OutputError, cause_of
from hf_rksp.zoo.render import all_models, rendered
from hf_rksp.zoo.shelf import read_shelf, result_path

#: Files besides the folders of the models. DATASET_CARD.md becomes README.md on the Hub, and README.md becomes INDEX.md.
_TOP = ("parquet/*.parquet", "figures/*.svg", "manifests/*.json", "index.html", "comparison.md")


def publish(folder: Path, repo: str, private: bool = False) -> str:
    """Upload reports, tables and cards; returns the address of the repository.

    Raises:
        InputError: the zoo has not been rendered.
        OutputError: the Hub refused or cannot be reached; nothing is lost.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    card, readme = folder / "DATASET_CARD.md", folder / "README.md"
    if not card.is_file() or not readme.is_file():
        raise InputError(f"folder={str(folder)!r} has no DATASET_CARD.md: run `rksp zoo render` first")
    files = {path for pattern in _TOP for path in folder.glob(pattern)}
    for entry in read_shelf(folder, all_models(folder)).entries:
        page = folder / entry.model.id
        names = {"model.json", *rendered(entry)}
        files |= {page / name for name in names if (page / name).is_file()}
        files |= {result_path(folder, entry.model, seed) for seed in entry.reports}
    operations = [CommitOperationAdd("README.md", card), CommitOperationAdd("INDEX.md", readme)]
    operations += [CommitOperationAdd(str(path.relative_to(folder)), path) for path in sorted(files)]
    api = HfApi()
    try:
        url = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.create_commit(repo, operations, commit_message="RKSP model zoo", repo_type="dataset")
    except Exception as error:  # network, permission and validation errors of several libraries
        raise OutputError(
            f"repo_id={repo!r}: {cause_of(error)}. Nothing is lost: push again when the Hub answers"
        ) from None
    return str(url)
