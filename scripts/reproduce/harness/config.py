"""Read config.yaml and expand its sweeps into jobs.

A config has the mapping `settings`, which every job receives as it stands, and one or more sections. A section has its seeds
and a sweep, which is a list of blocks:

    settings: {arms: {none: {clip: null}, clip: {clip: 1.0}}}
    report:                                  # the default section; its rows are in results.jsonl
      seeds: 24                              # 0 to 23; a list names them one by one
      sweep:
        - {task: recall, lr: [0.001, 0.002], arm: [none, clip]}
        - {task: text, lr: 0.002, arm: clip}

A section may also say how many `claims` its rows decide (1 by default), its budget in machine `hours`, and the most `workers` at a
time, if it measures times; see ../all.py.

In a block a list is swept and a single value is fixed; the first list varies slowest. The seed varies slowest of all, so
that an unfinished results file is balanced. A block may have seeds of its own under `seed`.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

Job = dict[str, Any]
_KEYS = {"seeds", "sweep", "claims", "hours", "workers"}
#: The section that is used if none is named.
REPORT = "report"


class ExperimentError(ValueError):
    """A command, a config or an experiment that cannot be used as it is; the message names the value and the remedy."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 1e-3 is a number, not a text as in YAML 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), [*"-+.0123456789"]
)


@dataclass(frozen=True)
class Section:
    """One section of a config.

    Attributes:
        folder: of the experiment. name: of the section. settings: what every job receives.
        jobs: the values that tell the jobs apart, in the order in which they are run.
        fields: the names that every job has; together they are the key of a row.
        claims: how many questions its rows decide. hours: machine hours that it may take; no limit by default.
        workers: jobs at a time at most.
    """

    folder: Path
    name: str
    settings: dict[str, Any]
    jobs: list[Job]
    fields: tuple[str, ...]
    claims: int = 1
    hours: float = math.inf
    workers: float = math.inf

    @property
    def results(self) -> Path:
        """The rows: results.jsonl, or SECTION.jsonl for any section but `report`."""
        return self.folder / ("results.jsonl" if self.name == REPORT else f"{self.name}.jsonl")

    @property
    def page(self) -> Path:
        """The tables: results.md, or SECTION.md."""
        return self.results.with_suffix(".md")

    def key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        """What tells the job of a row from the others."""
        return tuple(row.get(field) for field in self.fields)

    def first_seeds(self, count: int) -> Section:
        """The section with its first ``count`` seeds only."""
        seeds = list(dict.fromkeys(job["seed"] for job in self.jobs))
        if not 1 <= count <= len(seeds):
            raise ExperimentError(f"--seeds {count}: {self.folder / 'config.yaml'} has {len(seeds)} for {self.name!r}")
        return replace(self, jobs=[job for job in self.jobs if job["seed"] in seeds[:count]])

    def only(self, conditions: list[str]) -> Section:
        """The jobs that meet every ``field=value``; several values of one field are alternatives."""
        wanted: dict[str, list[str]] = {}
        for condition in conditions:
            field, equals, value = condition.partition("=")
            if not equals or field not in self.fields:
                raise ExperimentError(
                    f"--only {condition!r}: write FIELD=VALUE; the fields are {', '.join(self.fields)}"
                )
            wanted.setdefault(field, []).append(value)
        jobs = self.jobs
        for field, values in wanted.items():
            known = list(dict.fromkeys(job[field] for job in self.jobs))
            for value in values:
                if not any(_is(each, value) for each in known):
                    raise ExperimentError(f"--only {field}={value}: choose among {', '.join(map(str, known))}")
            jobs = [job for job in jobs if any(_is(job[field], value) for value in values)]
        return replace(self, jobs=jobs)


def sections(folder: Path) -> list[str]:
    """The names of the sections of an experiment."""
    return [name for name in _read(folder) if name != "settings"]


def section(folder: Path, name: str = REPORT) -> Section:
    """One section of ``folder``/config.yaml, with its jobs.

    Raises:
        ExperimentError: no such experiment or section, or a sweep that cannot be expanded.
    """
    config = _read(folder)
    if name not in config or name == "settings":
        raise ExperimentError(f"--section {name}: {folder / 'config.yaml'} has {', '.join(sections(folder))}")
    where = f"{folder / 'config.yaml'}, section {name!r}"
    entry = config[name]
    if not isinstance(entry, dict) or not isinstance(entry.get("sweep"), list) or set(entry) - _KEYS:
        raise ExperimentError(
            f"{where}: needs `sweep`, a list of blocks, and may have `seeds`, `claims`, `hours` and `workers`; nothing else"
        )
    seeds = entry.get("seeds")
    seeds = list(range(seeds)) if isinstance(seeds, int) else seeds
    jobs = [job for block in entry["sweep"] for job in _expand(block, seeds, where)]
    fields = tuple(jobs[0]) if jobs else ()
    for job in jobs:
        if set(job) != set(fields):
            raise ExperimentError(
                f"{where}: all blocks must have the same fields; one has {list(job)}, the first {list(fields)}"
            )
    order = {seed: place for place, seed in enumerate(dict.fromkeys(job["seed"] for job in jobs))}
    jobs.sort(key=lambda job: order[job["seed"]])
    more = {key: entry[key] for key in ("claims", "hours", "workers") if key in entry}
    if any(not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0 for value in more.values()):
        raise ExperimentError(f"{where}: claims, hours and workers are numbers above 0, not {more}")
    found = Section(folder, name, config.get("settings") or {}, jobs, fields, **more)
    keys = set()
    for job in jobs:
        if found.key(job) in keys:
            raise ExperimentError(f"{where}: the job {job} is listed twice; leave one out")
        keys.add(found.key(job))
    return found


def _read(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    if not file.is_file():
        known = sorted(
            path.parent.name for path in folder.parent.glob("*/config.yaml") if path.parent.parent == folder.parent
        )
        raise ExperimentError(f"{folder.name!r}: no {file}; the experiments are {', '.join(known) or 'none yet'}")
    try:
        config = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ExperimentError(f"{file}: not YAML: {error}") from None
    if not isinstance(config, dict):
        raise ExperimentError(f"{file}: needs a section such as `{REPORT}`")
    return config


def _expand(block: Any, seeds: list[int] | None, where: str) -> list[Job]:
    """All combinations of the lists of a block, the seed last in every job."""
    if not isinstance(block, dict):
        raise ExperimentError(f"{where}: {block!r} is no block; write {{field: value or list, ...}}")
    values = {field: value for field, value in block.items() if field != "seed"} | {"seed": block.get("seed", seeds)}
    if values["seed"] is None:
        raise ExperimentError(f"{where}: {block} has no seed; give the section `seeds` or the block `seed`")
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    for field, each in zip(values, lists, strict=True):
        for value in each:
            if isinstance(value, (dict, list)):
                raise ExperimentError(f"{where}: {field} has {value!r}; name it under `settings` and sweep the name")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*lists)]


def _is(value: Any, text: str) -> bool:
    """Whether a value of a job is what the command line says."""
    return str(value) == text or (not isinstance(value, str) and yaml.load(text, _Loader) == value)
