"""Imports run one way through the house, and the numerics need torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import hf_rksp

ROOT = Path(hf_rksp.__file__).parent
#: From the foundation to the roof; a module imports only what stands before its own part, or its own part.
ORDER = [
    "errors",
    "config",
    "machine",
    "spectral",
    "capture",
    "profile",
    "risk",
    "compare",
    "report",
    "architectures",
    "inputs",
    "check",
    "training",
    "zoo",
    "cli",
]
#: risk reads layers and profile calls risk; profile/layer.py is below risk, the rest of profile above it.
ALLOWED = {("profile", "risk")}


def part(module):
    return module.split(".")[1]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hf_rksp."):
            yield part(node.module)
        elif isinstance(node, ast.Import):
            yield from (part(alias.name) for alias in node.names if alias.name.startswith("hf_rksp."))


def test_imports_run_one_way():
    wrong = []
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        if relative.name == "__init__.py" and len(relative.parts) == 1:
            continue
        own = relative.parts[0].removesuffix(".py")
        for other in imports(path):
            if ORDER.index(other) > ORDER.index(own) and (own, other) not in ALLOWED:
                wrong.append(f"{relative} imports {other}")
    assert not wrong


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
