"""The code of an experiment: experiment.py in its folder, with these functions.

    run(job, settings) -> dict       one job: what its row says. Same job, same numbers
    tables(rows, settings) -> str    Markdown, from the rows of the jobs that ran to their end, in the order of the jobs
    check(jobs, settings)            may be left out: raises ValueError before any job starts (a variable, a file, a name)

Its folder is a package: modules beside it are imported with `from .name import ...`.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from scripts.reproduce.harness.config import ExperimentError


@functools.cache
def load(folder: Path) -> ModuleType:
    """The module experiment.py of a folder, which may be anywhere: worker processes load it by its path."""
    file = folder / "experiment.py"
    name = f"experiment_{folder.name}"
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None or not file.is_file():
        raise ExperimentError(f"{file}: not there; `python -m scripts.reproduce new NAME` writes one to start from")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    for function in ("run", "tables"):
        if not callable(getattr(module, function, None)):
            raise ExperimentError(f"{file}: has no function {function}; harness/experiment.py says what it takes")
    return module
