"""The models of a family, each with the arguments of ``rksp audit``."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hf_rksp.errors import InputError, cause_of
from hf_rksp.paper import read_paper

SOURCES = ("initialised", "trained", "pretrained")
#: Arguments that the runner adds.
_RUNNER = ("--seed", "--out", "--json", "--formats", "--push-to-hub", "--private", "--quiet", "--resume")
#: Folders of the zoo that are not models.
_RESERVED = ("manifests", "failures", "figures", "parquet")
#: Arguments of ``rksp audit`` that a forecast does not take; those in the first group have a value.
_AUDIT_ONLY = (("--groups", "--tokens", "--dtype"), ("--stream",))
_TYPES: tuple[tuple[str, Any, str], ...] = (
    ("memory_gib", (int, float), "a number"),
    ("progress", (int, float), "a number"),
    ("note", str, "a text"),
    ("series", str, "a text"),
    ("published", str, "a text"),
    ("trained_by", str, "a text"),
    ("needs_hub", bool, "true or false"),
)
#: Keys that may be null.
_OPTIONAL = ("progress", "series", "published", "trained_by")


@dataclass(frozen=True)
class ZooModel:
    """One model of the zoo.

    Attributes:
        id: name of its folder: letters, digits, points and hyphens.
        title: name on its page.
        family: heading that it is listed under.
        source: "initialised", "trained" (a small model, trained here), or "pretrained".
        licence: licence of the weights; for random weights, of the architecture.
        arguments: arguments of ``rksp audit``, without seed and output.
        seeds: seeds for the random weights and for choosing the text. The first seed has the full report. The others show the
            spread and run without the jackknife, which takes eight times as long as everything else.
        memory_gib: approximate peak memory of an audit, in GiB.
        published: key of the paper's model in ``hf_rksp/paper.json``, if the paper has this architecture.
        note: what a reader should know before comparing.
        needs_hub: whether the weights are only on the Hub, perhaps behind a licence. Such a model runs only if asked for, and
            its arguments name the commit.
        progress: fraction of its training that a trained model has completed, 0 to 1.
        training: arguments of ``rksp risk`` for the run that trained the model, or for its published equivalent: learning rate
            and plan. Empty if no such run is known.
        trained_by: what a reader should know of that run, and its source.
        series: name of its line in the figure of sizes; in the figure of training, if different from its family.
    """

    id: str
    title: str
    family: str
    source: str
    licence: str
    arguments: tuple[str, ...]
    seeds: tuple[int, ...] = (42,)
    memory_gib: float = 4.0
    published: str | None = None
    note: str = ""
    needs_hub: bool = False
    progress: float | None = None
    series: str | None = None
    training: tuple[str, ...] = ()
    trained_by: str | None = None

    @property
    def weights(self) -> str:
        """`source`; "initialised" for a model that was saved before its first training step."""
        return "initialised" if self.progress == 0 else self.source

    def arguments_of(self, seed: int) -> list[str]:
        """All arguments of the audit of one seed, without the output."""
        return [*(self.arguments if seed == self.seeds[0] else _without_jackknife(self.arguments)), "--seed", str(seed)]

    def command(self, seed: int) -> str:
        """The command that audits one seed."""
        return shlex.join(["rksp", "audit", *self.arguments_of(seed)])

    def risk_arguments(self) -> list[str]:
        """All arguments of the forecast of the first seed, without the output."""
        with_value, alone = _AUDIT_ONLY
        return [
            *_without(self.arguments, with_value, alone),
            *(self.training or ("--find-lr",)),
            "--seed",
            str(self.seeds[0]),
        ]

    def risk_command(self) -> str:
        """The command that makes this forecast."""
        return shlex.join(["rksp", "risk", *self.risk_arguments()])


@dataclass(frozen=True)
class Manifest:
    """The models of one file, in its order."""

    path: Path
    models: tuple[ZooModel, ...]


def read_manifest(path: Path) -> Manifest:
    """The manifest in a JSON file ``{"models": [...]}``, checked as a whole.

    Raises:
        InputError: names the file, the model, the key and the remedy.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"manifest={str(path)!r}: {error.strerror}; pass a file of zoo_reports/manifests") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"manifest={str(path)!r}: not JSON ({error})") from None
    if not isinstance(data, Mapping) or not isinstance(data.get("models"), list) or not data["models"]:
        raise InputError(f'manifest={str(path)!r}: pass {{"models": [...]}} with at least one model')
    try:
        models = tuple(
            _model(entry, f"manifest={str(path)!r}, model {index}") for index, entry in enumerate(data["models"])
        )
    except InputError as error:
        raise InputError(cause_of(error)) from None  # a value may be a whole file
    ids = [model.id for model in models]
    if duplicates := {name for name in ids if ids.count(name) > 1}:
        raise InputError(
            f"manifest={str(path)!r}: id={min(duplicates)!r} appears twice; give each model its own id, which names its folder"
        )
    return Manifest(path, models)


def _without_jackknife(arguments: tuple[str, ...]) -> list[str]:
    """``arguments`` with ``--groups 0`` instead of any other number of groups."""
    return [*_without(arguments, ("--groups",)), "--groups", "0"]


def _without(arguments: tuple[str, ...], with_value: tuple[str, ...], alone: tuple[str, ...] = ()) -> list[str]:
    """``arguments`` without these options, written as ``--name value`` or ``--name=value``, or without a value (``alone``)."""
    return [
        part
        for before, part in zip(("", *arguments), arguments, strict=False)
        if before not in with_value and part.split("=")[0] not in (*with_value, *alone)
    ]


def _model(entry: Any, where: str) -> ZooModel:
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: not an object")
    known = {field.name for field in fields(ZooModel)}
    if unknown := sorted(set(entry) - known):
        raise InputError(f"{where}: {unknown[0]!r} is none of {', '.join(sorted(known))}")
    for name in ("id", "title", "family", "source", "licence"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise InputError(f"{where}: {name}={entry.get(name)!r}: pass a text")
    where = f"{where} ({entry['id']})"
    if entry["id"] in _RESERVED or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", entry["id"]):
        raise InputError(
            f"{where}: id={entry['id']!r}: the id names a folder; use letters, digits, points and hyphens, and none of "
            f"{', '.join(_RESERVED)}"
        )
    if entry["source"] not in SOURCES:
        raise InputError(f"{where}: source={entry['source']!r} is none of {', '.join(SOURCES)}")
    arguments, seeds = entry.get("arguments"), entry.get("seeds", [42])
    if not isinstance(arguments, list) or not arguments or not all(isinstance(part, str) for part in arguments):
        raise InputError(f"{where}: arguments={arguments!r}: pass the arguments of `rksp audit` as a list of texts")
    if added := [part for part in arguments if part.split("=")[0] in _RUNNER]:
        raise InputError(f"{where}: arguments: the runner adds {added[0]!r} itself; leave it out")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise InputError(f"{where}: seeds={seeds!r}: pass a list of whole numbers from 0")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{where}: seeds={seeds!r}: a seed appears twice; leave one out")
    if entry.get("needs_hub") is True and not re.search(r"--revision[ =][0-9a-f]{40}(?: |$)", " ".join(arguments)):
        raise InputError(
            f"{where}: arguments: add --revision with the commit on the Hub, 40 digits; a branch can change"
        )
    keys = tuple(read_paper().models)
    if entry.get("published") not in (None, *keys):
        raise InputError(f"{where}: published={entry['published']!r} is none of {', '.join(keys)}")
    for name, kind, description in _TYPES:
        if name not in entry or (entry[name] is None and name in _OPTIONAL):
            continue
        if not (isinstance(entry[name], kind) and isinstance(entry[name], bool) == (kind is bool)):
            raise InputError(f"{where}: {name}={entry[name]!r}: pass {description}, or leave it out")
    training = entry.get("training", [])
    if not isinstance(training, list) or not all(isinstance(part, str) for part in training):
        raise InputError(
            f"{where}: training={training!r}: pass arguments of `rksp risk` as a list of texts, or leave it out"
        )
    if training and not ("--lr" in training and entry.get("trained_by")):
        raise InputError(
            f"{where}: training={training!r}: it needs --lr, and trained_by with the source of the learning rate"
        )
    if entry.get("memory_gib", 0) < 0:
        raise InputError(f"{where}: memory_gib={entry['memory_gib']!r}: pass a number of at least 0")
    if not 0 <= (entry.get("progress") or 0) <= 1:
        raise InputError(f"{where}: progress={entry['progress']!r}: pass a fraction from 0 to 1")
    return ZooModel(**{**entry, "arguments": tuple(arguments), "seeds": tuple(seeds), "training": tuple(training)})
