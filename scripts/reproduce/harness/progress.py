"""What is done and what is left of a section, and its tables."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass

from scripts.reproduce.harness import rows
from scripts.reproduce.harness.config import Job, Section
from scripts.reproduce.harness.experiment import load
from scripts.reproduce.harness.rows import Row


@dataclass(frozen=True)
class Progress:
    """The jobs of a section by how they stand.

    Attributes:
        done, failed: the rows of jobs that ran to their end, and of jobs that did not, in the order of the jobs.
        left: the jobs without a row. others: how many rows of the file belong to no job of the section.
    """

    section: Section
    done: list[Row]
    failed: list[Row]
    left: list[Job]
    others: int

    def status(self) -> str:
        """How many are done, and the machine hours."""
        total = len(self.section.jobs)
        silent = sum("seconds" not in row for row in self.done)
        expected = self.hours_left()
        lines = [
            f"{len(self.done)} of {total} jobs done, {len(self.failed)} failed, {len(self.left)} left",
            f"machine hours: {self.hours_spent():.2f} spent" + (f" ({silent} rows do not state their time)" if silent else "")
            + ("" if not self.left else ", not known how many left" if expected is None else f", about {expected:.2f} left"),
        ]  # fmt: skip
        for error, count in Counter(row["error"] for row in self.failed).most_common():
            lines.append(f"{count} failed with {error}")
        if self.failed:
            lines.append("--retry runs the failed jobs again; the traceback is in their rows")
        if self.others:
            lines.append(f"{self.others} rows are of jobs that are not among these; the tables leave them out")
        return "\n".join(lines)

    def to_retry(self) -> list[Job]:
        """The jobs that failed."""
        return [{field: row[field] for field in self.section.fields} for row in self.failed]

    def hours_spent(self) -> float:
        """Machine hours of all rows that state their time."""
        return sum(float(row.get("seconds", 0)) for row in [*self.done, *self.failed]) / 3600

    def information_left(self) -> float:
        """Bits that the rows that are left add: the standard error of a mean falls with the root of the number of rows.

        A normal estimate from n rows in place of m says log2(n / m) / 2 bits more; so many for each claim that the section decides.
        """
        done = len(self.done)
        return self.section.claims * math.log2((done + len(self.left)) / max(done, 1)) / 2 if self.left else 0.0

    def hours_left(self) -> float | None:
        """Machine hours that the jobs that are left take; ``None`` if no row says how long one takes.

        Each job that is left takes as long as the same job did with other seeds, or else as the mean of all."""
        alike: dict[tuple[object, ...], list[float]] = {}
        for row in self.done:
            if "seconds" in row:
                alike.setdefault(self._without_seed(row), []).append(row["seconds"])
        if not alike:
            return None
        every = [seconds for each in alike.values() for seconds in each]
        times = (alike.get(self._without_seed(job), every) for job in self.left)
        return sum(sum(each) / len(each) for each in times) / 3600

    def _without_seed(self, row: Row) -> tuple[object, ...]:
        return tuple(row.get(field) for field in self.section.fields if field != "seed")

    def tables(self) -> str:
        """The tables, with a last line that says what is not in them."""
        text = load(self.section.folder).tables(self.done, self.section.settings)
        if self.failed or self.left:
            text += f"\n*{len(self.failed)} jobs failed and {len(self.left)} have not run yet: not in these tables.*\n"
        return text


def progress(section: Section) -> Progress:
    """Read the results file of a section. The last row of a job counts."""
    last = {}
    read = rows.read(section.results)
    for row in read:
        last[section.key(row)] = row
    keys = {section.key(job) for job in section.jobs}
    here = [(job, last.get(section.key(job))) for job in section.jobs]
    return Progress(
        section,
        done=[row for _, row in here if row and rows.ok(row)],
        failed=[row for _, row in here if row and not rows.ok(row)],
        left=[job for job, row in here if not row],
        others=sum(section.key(row) not in keys for row in read),
    )


def write_page(state: Progress) -> None:
    """Write the tables aside and move them into place."""
    page = state.section.page
    aside = page.with_name(page.name + ".partial")
    aside.write_text(state.tables(), encoding="utf-8")
    os.replace(aside, page)
