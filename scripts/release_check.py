"""Is this commit a release? ``make release-check``, after lint, tests, fuzzing and the wheel.

The version is the same in pyproject.toml, in the changelog, in the package and in the names of the files; the changelog has a date;
nothing is uncommitted.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def problems(dist: Path) -> list[str]:
    """What is in the way of a release."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    found = []
    heading = re.search(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    if heading is None or heading[1] != version:
        found.append(f"CHANGELOG.md does not begin with version {version}")
    elif not re.fullmatch(r"\d{4}-\d{2}-\d{2}", heading[2]):
        found.append(f"CHANGELOG.md: version {version} has no date, but {heading[2]!r}")
    names = [f"hf_rksp-{version}-py3-none-any.whl", f"hf_rksp-{version}.tar.gz"]
    found += [f"{dist / name} is missing: run `make wheel`" for name in names if not (dist / name).exists()]
    changed = subprocess.run(
        ["git", "-C", ROOT, "status", "--porcelain"], capture_output=True, text=True, check=True
    ).stdout
    if changed.strip():
        found.append(f"uncommitted: {changed.strip().splitlines()[0]}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dist", type=Path, default=ROOT / "out/dist", help="folder of the wheel and the sdist")
    wrong = problems(parser.parse_args().dist.absolute())
    sys.exit("\n".join(wrong) or 0)
