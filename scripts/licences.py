"""Write docs/licences.md, the licences of what hf_rksp needs to run: ``python scripts/licences.py``."""

import re
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).resolve().parents[1] / "docs/licences.md"
#: Licences whose names packages write in many ways.
_SHORT = (
    (r"apache.*2|apache software", "Apache-2.0"),
    (r"^bsd.{0,3}3|new bsd|3-clause", "BSD-3-Clause"),
    (r"bsd", "BSD"),
    (r"\bmit\b", "MIT"),
    (r"mozilla|mpl", "MPL-2.0"),
    (r"python software|psf", "PSF-2.0"),
    (r"hpnd", "HPND"),
    (r"isc", "ISC"),
    (r"unlicense", "Unlicense"),
)


def needed(name: str = "hf_rksp", extra: str = "") -> dict[str, str]:
    """Name -> licence of everything that an installation without extras brings."""
    found: dict[str, str] = {}
    waiting = [(name, extra)]
    while waiting:
        current, wanted = waiting.pop()
        for line in distribution(current).requires or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": one}) for one in (wanted, "")):
                continue
            own = requirement.name.lower().replace("_", "-")
            if own not in found and not own.startswith(("nvidia-", "cuda-", "triton")):  # with torch, on some machines
                found[own] = licence(own)
                waiting += [(own, one) for one in (requirement.extras or {""})]
    return dict(sorted(found.items()))


def licence(name: str) -> str:
    """The licence as a short name."""
    data = distribution(name).metadata
    if data.get("License-Expression"):
        return str(data["License-Expression"])
    classifiers = [
        line.split("::")[-1].strip() for line in data.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    text = (classifiers or [str(data.get("License") or "unknown").strip().splitlines()[0]])[0]
    return next((short for pattern, short in _SHORT if re.search(pattern, text, re.IGNORECASE)), text[:60])


def page() -> str:
    """The page for what is installed here."""
    lines = [
        "# Licences",
        "",
        "hf_rksp is under Apache-2.0. An installation without extras brings these packages; made by `python scripts/licences.py`.",
        "Versions are in [constraints.txt](../constraints.txt). On some machines torch brings CUDA libraries, which are NVIDIA's.",
        "",
        "| package | licence |",
        "| --- | --- |",
        *(f"| {name} | {text} |" for name, text in needed().items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
