"""Reports to render: a tiny profile, and what can go wrong with one."""

import copy
import functools
import math
import random
import shutil

import torch

HOSTILE = "</script><img src=x onerror=alert(1)><b>`a|b\n[c](javascript:alert(2)) *d* $e$ www.evil.test \u202eabc\x00"


@functools.cache
def _tiny():
    from transformers import GPT2Config, GPT2Model

    from hf_rksp.audit import Audit
    from hf_rksp.profile import profile_model
    from hf_rksp.report import audit_to_dict
    from hf_rksp.risk.thresholds import assess

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2Model(GPT2Config(n_layer=3, n_embd=32, n_head=2, vocab_size=64, n_positions=32)).eval()
        tokens = torch.randint(0, 64, (32, 16), generator=torch.Generator().manual_seed(1))
    profile = profile_model(
        model,
        [tokens],
        source="initialised",
        progress=False,
        setup_info={
            "command": "rksp audit --init gpt2 --seed 0",
            "seed": 0,
            "text": {"source": "random", "tokens": 512},
        },
    )
    audit = Audit(profile, assess(profile))
    return audit, audit_to_dict(audit)


def audit():
    """The audit itself."""
    return _tiny()[0]


def report():
    """Its dict, to change at will."""
    return copy.deepcopy(_tiny()[1])


def many_layers(layers, modes, stacks=1):
    """A report with ``layers`` layers of ``modes`` eigenvalues each, no two of which share a spot."""
    data, rng = report(), random.Random(0)
    template = data["profile"]["layers"][1]
    data["profile"]["layers"] = []
    for place in range(layers):
        layer = copy.deepcopy(template)
        stack = f"stack{place * stacks // layers}.layers" if stacks > 1 else "model.layers"
        index = sum(other["stack"] == stack for other in data["profile"]["layers"])
        layer |= {"stack": stack, "index": index, "path": f"{stack}.{index}"}
        values = []
        for _ in range(modes // 2):
            radius, angle = math.sqrt(rng.random()), math.pi * rng.random()
            x, y = 1 + radius * math.cos(angle), radius * math.sin(angle)
            values += [[float(f"{x:.6g}"), float(f"{y:.6g}")], [float(f"{x:.6g}"), float(f"{-y:.6g}")]]
        layer |= {"eigenvalues": values, "residuals": [0.1] * len(values), "mass_denominator": len(values)}
        data["profile"]["layers"].append(layer)
    return data


def hostile():
    """Markup, a pipe, a line break and control characters in every string that comes from outside."""

    def infect(value, key=""):
        if isinstance(value, dict):
            return {name: infect(item, name) for name, item in value.items()} | (
                {HOSTILE: HOSTILE} if key in ("config", "text", "versions", "setup", "model", "cost") else {}
            )
        if isinstance(value, list):
            return [infect(item, key) for item in value]
        return HOSTILE if isinstance(value, str) and key not in ("band", "outcome", "mode") else value

    return infect(report())


def awkward():
    """Two stacks, an identity block, one spectral radius and one condition far off, and nulls."""
    data = many_layers(8, 32, stacks=2)
    layers = data["profile"]["layers"]
    layers[1] |= {"uninformative": True, "nonlinearity_ratio": None, "eigenvalues": [[1.0, 0.0]] * 32, "intervals": {}}
    layers[2] |= {"spectral_radius": 35.2, "eigenvector_condition": 1e300}
    layers[2]["eigenvalues"][:2] = [[35.0, 3.7], [35.0, -3.7]]
    layers[3] |= {"eigenvector_condition": None, "near_unit_mass": None, "intervals": {"spectral_radius": [None, 2.0]}}
    layers[4]["kreiss_constant"] = {"lower": 1.0, "upper": None, "disc_radius": 1.0}
    data["verdict"] |= {"band": "not_assessable", "band_by_thresholds": "high", "score": 0.61, "interval": [0.55, 0.67]}
    return data


def chromium():
    """Path of a Chromium, or ``None``."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
