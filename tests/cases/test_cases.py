"""The cases that need no process of their own, one after the other in this one; `run_all.py` runs all of them."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
import transformers

HERE = Path(__file__).parent
#: They start the command line or worker processes: a minute or more together.
SLOW = ("d_", "p01", "p03", "p04", "p29", "p30", "p31", "p33", "p34", "p38")
SCRIPTS = [path for path in sorted(HERE.glob("*.py")) if path.stem not in ("common", "run_all", "test_cases")]


@pytest.fixture(autouse=True)
def left_as_it_was(monkeypatch):
    """The cases quiet transformers and take one thread; both are the process's own."""
    monkeypatch.syspath_prepend(str(HERE))
    threads, verbosity = torch.get_num_threads(), transformers.utils.logging.get_verbosity()
    yield
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()


@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if not path.stem.startswith(SLOW)], ids=lambda path: path.stem
)
def test_case(script, capsys):
    torch.set_num_threads(1)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().out.strip().splitlines()[-1]


def test_every_script_is_run_here_or_known_to_be_slow():
    assert len(SCRIPTS) == 39
    assert all(any(path.stem.startswith(name) for path in SCRIPTS) for name in SLOW)
    assert "common" not in sys.modules or Path(sys.modules["common"].__file__).parent == HERE
