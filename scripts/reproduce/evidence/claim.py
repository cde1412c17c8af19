"""A claim of a paper, and what became of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scripts.reproduce.harness.config import section
from scripts.reproduce.harness.progress import Progress, progress

Verdict = Literal["held", "partly", "not", "undecided", "not tested"]
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Finding:
    """What the rows say.

    Attributes:
        verdict: by the rule of the claim.
        text: the numbers, as Markdown.
    """

    verdict: Verdict
    text: str


NO_ROWS = Finding("not tested", "The runs are not made yet.")


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        place: where the paper makes it.
        says: the claim in our words, with the published number.
        rule: what counts as held and as partly held; set without regard to the rows.
        command: makes the rows, or the tables from them.
        rows: files, from the root of the repository; the first one is linked.
        judge: reads the rows. ``None``: no experiment tests the claim yet.
        experiment, sections: whose rows they are, if an experiment makes them.
    """

    place: str
    says: str
    rule: str
    command: str
    rows: tuple[str, ...]
    judge: Callable[[], Finding] | None
    experiment: str = ""
    sections: tuple[str, ...] = ()

    def finding(self) -> Finding:
        """What became of it."""
        if self.judge is None:
            return Finding("not tested", "No experiment tests this claim yet.")
        if not self.has_rows:
            return NO_ROWS
        found = self.judge()
        parts = [progress_of(self.experiment, name) for name in self.sections]
        done, left = sum(len(part.done) for part in parts), sum(len(part.left) for part in parts)
        return replace(found, text=f"{found.text} So far {done} of {done + left} runs are made.") if left else found

    @property
    def has_rows(self) -> bool:
        """Whether the files that it rests on are there: an experiment may be planned and not begun."""
        return all((ROOT / file).exists() for file in self.rows)


@dataclass(frozen=True)
class Paper:
    """A paper and its claims.

    Attributes:
        picture: Markdown that stands before the table.
    """

    name: str
    source: str
    claims: tuple[Claim, ...]
    picture: str = ""


@functools.cache
def progress_of(experiment: str, name: str = "report") -> Progress:
    """What of a section is done, and what is left."""
    return progress(section(ROOT / "scripts/reproduce" / experiment, name))


def rows_of(experiment: str, name: str = "report") -> list[dict[str, Any]]:
    """The rows of a section that ran to their end."""
    return progress_of(experiment, name).done


def experiment_settings(experiment: str) -> dict[str, Any]:
    """The settings of an experiment."""
    return progress_of(experiment).section.settings


def reproduce(experiment: str, *sections: str) -> dict[str, Any]:
    """What a `Claim` has if an experiment answers it: ``command``, ``rows``, ``experiment`` and ``sections``.

    Without a section that is its report. The command and the first file are those of the first section.
    """
    names = sections or ("report",)
    more = "" if names[0] == "report" else f" --section {names[0]}"
    files = [f"{'results' if name == 'report' else name}.jsonl" for name in names]
    return {
        "command": f"python -m scripts.reproduce {experiment}{more} --table",
        "rows": tuple(f"scripts/reproduce/{experiment}/{file}" for file in files),
        "experiment": experiment,
        "sections": names,
    }
