"""The model zoo: which models are audited, the runner of the audits, and the pages that show the results.

manifest -> runner and risks (the only writers of results) -> shelf (reads them) -> pages, index, parquet -> publish
"""

from hf_rksp.zoo.manifest import Manifest, ZooModel, read_manifest
from hf_rksp.zoo.render import render_zoo
from hf_rksp.zoo.risks import Forecasts, run_forecasts
from hf_rksp.zoo.runner import RunnerOptions, run_manifest
from hf_rksp.zoo.shelf import Shelf, read_shelf

__all__ = [
    "Forecasts",
    "Manifest",
    "RunnerOptions",
    "Shelf",
    "ZooModel",
    "read_manifest",
    "read_shelf",
    "render_zoo",
    "run_forecasts",
    "run_manifest",
]
