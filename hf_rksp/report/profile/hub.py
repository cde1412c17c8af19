"""Publish a report as a dataset repository on the Hub, with a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rksp.errors import OutputError, cause_of


def check_access(option: str = "push_to_hub") -> None:
    """Refuse before the work starts if there is no token to push with; ``option`` asked for it.

    Raises:
        OutputError: nobody is logged in.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise OutputError(f"{option}: not logged in to the Hub; run `hf auth login`, or set HF_TOKEN")


def push_report(
    folder: Path,
    data: Mapping[str, Any],
    repo: str,
    private: bool = False,
    formats: Sequence[str] = ("json", "md", "html"),
) -> str:
    """Upload the files of a report folder and a card; returns the address.

    Raises:
        OutputError: the Hub refused or cannot be reached; the report stays in ``folder``.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    patterns = [f"report.{name}" for name in formats] + (["figures/*.svg"] if "md" in formats else [])
    try:
        url = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_file(
            path_or_fileobj=card(data, folder).encode(), path_in_repo="README.md", repo_id=repo, repo_type="dataset"
        )
        api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            repo_type="dataset",
            allow_patterns=patterns,
            commit_message=f"RKSP report of {data['profile']['model']['name']}",
        )
    except Exception as error:  # network, permission and validation errors of several libraries
        raise OutputError(
            f"push_to_hub={repo!r} failed: {cause_of(error)}. The report is in {folder}; push again when the Hub answers"
        ) from None
    return str(url)


def card(data: Mapping[str, Any], folder: Path) -> str:
    """Dataset card: metadata, then the Markdown report if there is one."""
    model = data["profile"]["model"]
    path = str(model.get("path"))
    on_hub = model.get("source") == "pretrained" and ":" not in path and not Path(path).exists()
    base = path if on_hub else None
    lines = [
        "---",
        "tags:",
        "- rksp",
        "- training-stability",
        "- residual-koopman-spectral-profiling",
    ]
    if base:
        lines += ["source_model:", f"- {base}"]
    lines += ["---", ""]
    report = folder / "report.md"
    body = (
        report.read_text(encoding="utf-8")
        if report.is_file()
        else f"RKSP report of `{model['name']}`: see report.json.\n"
    )
    return "\n".join(lines) + body
