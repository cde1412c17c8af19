"""The promises of SECURITY.md have the tests that it names; the lock and the licences are those of the requirements."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
PROMISES = re.findall(r"^\| (.+?) \| `(tests/\S+\.py)::(\w+)` \|$", (ROOT / "SECURITY.md").read_text(), re.M)


def pins(name):
    """Package -> version of a file of pins."""
    lines = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (ROOT / name).read_text(), re.M)
    return {package.lower().replace("_", "-"): version for package, version in lines}


def test_every_promise_names_a_test():
    rows = [
        line
        for line in (ROOT / "SECURITY.md").read_text().splitlines()
        if line.startswith("| ") and "promise" not in line
    ]
    assert len(PROMISES) == len(rows) - 1, "the line below the heading is none"


@pytest.mark.parametrize(("promise", "file", "test"), PROMISES, ids=[test for _, _, test in PROMISES])
def test_the_test_of_a_promise_is_there(promise, file, test):
    names = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)}
    assert test in names, promise


def test_the_lock_has_the_versions_that_the_tests_run_with():
    locked, constraints = pins("requirements-dev.txt"), pins("constraints.txt")
    differ = {name for name in locked.keys() & constraints.keys() if locked[name] != constraints[name]}
    missing = constraints.keys() - locked.keys() - {"torch"}
    assert not differ and not missing, f"run `make lock`: {differ | missing}"
    text = (ROOT / "requirements-dev.txt").read_text()
    assert len(re.findall(r"^\S+==.*\\$", text, re.M)) == len(locked), "each has hashes"
    assert text.count("--hash=sha256:") > len(locked) and "torch" not in locked


def test_every_requirement_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in extras if extra != "ray" for line in extras[extra])]
    names = {Requirement(line).name.lower().replace("_", "-") for line in lines} - {"hf-rksp"}
    assert names <= pins("constraints.txt").keys()


def test_the_oldest_versions_are_those_that_pyproject_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = pins("constraints-oldest.txt")
    for line in project["dependencies"]:
        requirement = Requirement(line)
        lower = [one.version for one in requirement.specifier if one.operator == ">="]
        if lower and requirement.name in ("torch", "transformers", "accelerate", "datasets", "peft"):
            assert oldest[requirement.name].startswith(lower[0])


def test_the_page_of_licences_has_every_requirement():
    from scripts.licences import needed

    page = (ROOT / "docs/licences.md").read_text()
    listed = dict(re.findall(r"^\| ([a-z0-9.-]+) \| (.+) \|$", page, re.M)) | {"package": ""}
    here = needed()
    assert here.keys() <= listed.keys(), "run `python scripts/licences.py`"
    assert not [name for name, licence in here.items() if "unknown" in licence or "GPL" in licence.replace("LGPL", "")]
