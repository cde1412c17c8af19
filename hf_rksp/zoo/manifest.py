"""Which models a family of the zoo has, and with which arguments of ``rksp audit`` each is audited."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hf_rksp.errors import InputError
from hf_rksp.zoo.published import PUBLISHED

SOURCES = ("initialised", "trained", "pretrained")
#: Arguments that the runner gives itself.
_OWN = ("--seed", "--out", "--json", "--formats", "--push-to-hub", "--private", "--quiet", "--resume")
#: Folders of the zoo that are no models.
_RESERVED = ("manifests", "failures", "figures", "parquet")
_TYPES: tuple[tuple[str, Any, str], ...] = (
    ("memory_gib", (int, float), "a number"),
    ("step", (int, float), "a number"),
    ("note", str, "a text"),
    ("line", str, "a text"),
    ("published", str, "a text"),
    ("needs_hub", bool, "true or false"),
)
#: Those that may be null.
_OPTIONAL = ("step", "line", "published")


@dataclass(frozen=True)
class ZooModel:
    """One model of the zoo.

    Attributes:
        id: name of its folder: letters, digits, points and hyphens.
        title: name on its page. family: that it is listed under.
        source: "initialised", "trained" (a small one, trained here), or "pretrained".
        licence: of the weights, or of the architecture where there are none.
        arguments: of ``rksp audit``, without seed and output.
        seeds: of the random weights and the draw of text. The first one has the full report; the others are there for their
            spread, and go without the jackknife, which costs eight times as much as all the rest.
        memory_gib: about the most that an audit takes.
        published: key of the paper's figures for this architecture in `hf_rksp.zoo.published`.
        note: what a reader has to know before comparing.
        needs_hub: the weights are on the Hub alone (and may need a licence): not run unless asked for. The arguments then
            name their commit.
        step: share of its training that a trained model has had, 0 to 1.
        line: that it stands on in the figure of sizes, if any; in that of training, where it is not its family's.
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
    step: float | None = None
    line: str | None = None

    @property
    def weights(self) -> str:
        """`source`; "initialised" for a model that was saved before the first step of its training."""
        return "initialised" if self.step == 0 else self.source

    def arguments_of(self, seed: int) -> list[str]:
        """All arguments of the audit of one seed, but where its output goes."""
        return [*(self.arguments if seed == self.seeds[0] else _without_jackknife(self.arguments)), "--seed", str(seed)]

    def command(self, seed: int) -> str:
        """The audit of one seed, as a reader would type it."""
        return shlex.join(["rksp", "audit", *self.arguments_of(seed)])


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
    models = tuple(
        _model(entry, f"manifest={str(path)!r}, model {place}") for place, entry in enumerate(data["models"])
    )
    ids = [model.id for model in models]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise InputError(
            f"manifest={str(path)!r}: id={min(twice)!r} is there twice; each model has a folder of its own"
        )
    return Manifest(path, models)


def _without_jackknife(arguments: tuple[str, ...]) -> list[str]:
    """``arguments`` with ``--groups 0``, in place of what it was."""
    kept = [
        part
        for before, part in zip(("", *arguments), arguments, strict=False)
        if before != "--groups" and part.split("=")[0] != "--groups"
    ]
    return [*kept, "--groups", "0"]


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
            f"{where}: id={entry['id']!r}: it names a folder; use letters, digits, points and hyphens, and none of "
            f"{', '.join(_RESERVED)}"
        )
    if entry["source"] not in SOURCES:
        raise InputError(f"{where}: source={entry['source']!r} is none of {', '.join(SOURCES)}")
    arguments, seeds = entry.get("arguments"), entry.get("seeds", [42])
    if not isinstance(arguments, list) or not arguments or not all(isinstance(part, str) for part in arguments):
        raise InputError(f"{where}: arguments={arguments!r}: pass the arguments of `rksp audit` as a list of texts")
    if own := [part for part in arguments if part.split("=")[0] in _OWN]:
        raise InputError(f"{where}: arguments: {own[0]!r} is given by the runner; leave it out")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise InputError(f"{where}: seeds={seeds!r}: pass a list of whole numbers from 0")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{where}: seeds={seeds!r}: one is there twice")
    if entry.get("needs_hub") is True and not re.search(r"--revision[ =][0-9a-f]{40}(?: |$)", " ".join(arguments)):
        raise InputError(f"{where}: arguments: add --revision with the commit on the Hub, 40 digits: a branch moves")
    if entry.get("published") not in (None, *PUBLISHED):
        raise InputError(f"{where}: published={entry['published']!r} is none of {', '.join(PUBLISHED)}")
    for name, kind, said in _TYPES:
        if name not in entry or (entry[name] is None and name in _OPTIONAL):
            continue
        if not (isinstance(entry[name], kind) and isinstance(entry[name], bool) == (kind is bool)):
            raise InputError(f"{where}: {name}={entry[name]!r}: pass {said}, or leave it out")
    if entry.get("memory_gib", 0) < 0 or not 0 <= (entry.get("step") or 0) <= 1:
        raise InputError(f"{where}: memory_gib is a number from 0, and step a share from 0 to 1")
    return ZooModel(**{**entry, "arguments": tuple(arguments), "seeds": tuple(seeds)})
