"""Pages are loaded when they are drawn, and only what a page needs."""

import subprocess
import sys

import pytest

import hf_rksp.report


def loaded(statement, prefix="hf_rksp.report"):
    code = f"import sys; {statement}; print(*sorted(m for m in sys.modules if m.startswith({prefix!r})))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_training_loads_no_page():
    assert loaded("import hf_rksp.training") == []


def test_one_module_does_not_load_the_others():
    found = loaded("import hf_rksp.report.kit.text")
    assert found == ["hf_rksp.report", "hf_rksp.report.kit", "hf_rksp.report.kit.text"]


def test_the_page_of_a_run_loads_no_model_library():
    assert loaded("from hf_rksp.report import read_history, render_timeline", "transformers") == []


@pytest.mark.parametrize("name", hf_rksp.report.__all__)
def test_every_public_name_is_there(name):
    assert getattr(hf_rksp.report, name) is not None and name in dir(hf_rksp.report)


def test_an_unknown_name_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hf_rksp.report.nothing  # noqa: B018
