"""Imports run one way through the house, and the numerics need torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_rksp

ROOT = Path(hf_rksp.__file__).parent
#: From the foundation to the roof; a module imports only what stands before its own part, or its own part.
ORDER = [
    "errors",
    "config",
    "machine",
    "flat",
    "ranks",
    "files",
    "json_data",
    "quantities",
    "baseline",
    "paper",
    "spectral",
    "capture",
    "architectures",
    "inputs",
    "profile",
    "risk",
    "metrics",
    "audit",
    "forecast",
    "compare",
    "history",
    "report",
    "check",
    "doctor",
    "training",
    "zoo",
    "cli",
]


def name_of(path, root):
    """The dotted name of a module."""
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(root):
    return {name_of(path, root): path for path in root.rglob("*.py")}


def arrows(path, modules):
    """Modules that the module at ``path`` names: by an import at any depth, or in a string, as for a subprocess."""
    root = next(iter(modules)).split(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == root:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.Constant) and node.value in modules and modules[node.value].name != "__init__.py":
            yield node.value  # a package is named for its files, a module to be run


def upward(root, order):
    """Arrows from a part of the house to one that stands above it."""
    modules, wrong = modules_of(root), []
    for name, path in modules.items():
        own = name.split(".")[1:2]
        for other in arrows(path, modules) if own and own != ["__main__"] else ():
            part = other.split(".")[1:2]
            if part and order.index(part[0]) > order.index(own[0]):
                wrong.append(f"{name} names {other}")
    return wrong


def circles(root):
    """Groups of modules that import each other, type-only imports and imports inside functions included."""
    modules = modules_of(root)
    graph = {name: set(arrows(path, modules)) - {name} for name, path in modules.items()}

    def reached(start):
        seen, todo = set(), list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        return seen

    below = {name: reached(name) for name in graph}
    return sorted({tuple(sorted(n for n in below[name] if name in below[n])) for name in graph if name in below[name]})


def test_imports_run_one_way():
    assert upward(ROOT, ORDER) == []


def test_no_modules_import_each_other():
    assert circles(ROOT) == []


@pytest.mark.parametrize(
    ("low", "high", "wrong", "round_"),
    [
        ("x = 1", "from house.low.a import x", 0, 0),
        ("from house.high.b import y", "y = 1", 1, 0),
        ("def f():\n    import house.high.b", "y = 1", 1, 0),
        ("command = ['-m', 'house.high.b']", "y = 1", 1, 0),
        ("from house.low import c", "y = 1", 0, 1),
    ],
    ids=["down", "up", "up inside a function", "up by a subprocess", "a circle inside a part"],
)
def test_the_tests_above_can_fail(tmp_path, low, high, wrong, round_):
    root = tmp_path / "house"
    for part, module, text in (("low", "a", low), ("high", "b", high), ("low", "c", "from house.low import a")):
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / part / "__init__.py").touch()
        (root / part / f"{module}.py").write_text(text)
    (root / "__init__.py").write_text("names = {'b': 'house.high.b'}")
    assert len(upward(root, ["low", "high"])) == wrong
    assert len(circles(root)) == round_


def test_every_part_has_a_place_in_the_order():
    parts = {
        p.name.removesuffix(".py")
        for p in ROOT.iterdir()
        if not p.name.startswith("_") and (p.is_dir() or p.suffix == ".py")
    }
    assert parts == set(ORDER)


def test_numerics_and_capture_need_torch_alone():
    heavy = "{'transformers', 'datasets', 'peft', 'scipy'}"
    code = f"import sys, hf_rksp.spectral, hf_rksp.capture; print({heavy} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


def test_plain_import_is_light():
    code = "import sys, hf_rksp; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


def test_what_is_wrong_with_a_name_is_said_before_the_compiler_is_loaded():
    """An audit of a Hub id without a network has ten seconds; these took five of them on a busy machine."""
    code = (
        "import os, sys; os.environ['HF_HUB_OFFLINE'] = '1'\n"
        "from hf_rksp.cli.main import main\n"
        "code = main(['audit', 'some/model', '--quiet'])\n"
        "print(code, {'torch._dynamo', 'datasets', 'scipy.stats'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "2 set()"
