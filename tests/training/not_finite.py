"""Runs whose numbers go wrong, for `test_not_finite.py`: in a process of their own, because LAPACK may crash on them.

    python -m tests.training.not_finite FOLDER

prints a line of JSON for each run, before (its name) and after (what came of it).
"""

import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from hf_rksp.training.kss import measure
from tests.training.common import Chain, Gradients, gpt2, logged, token_rows, trained

STEPS = 3
unpatched_sums = measure.projected_sums


def poisoned(value):
    """Block 1 gives one token a bad number, and block 2 heals it: the task itself stays finite."""
    model = Chain()

    def poison(y):
        bad = torch.zeros_like(y)
        bad[0, 0, 0] = value
        return y + bad

    def heal(x):
        return torch.where(x.isfinite(), x, 0.0)

    model.layers[1].after, model.layers[2].before = poison, heal
    return model


def embedded(change):
    """The stream starts from a changed embedding."""
    model = Chain()
    with torch.no_grad():
        change(model.embedding.weight)
    return model


def rank_one(weight):
    weight.copy_(torch.linspace(0.5, 1, len(weight))[:, None] * weight[:1])


def frozen_zero():
    """All states are zero: nothing is left to whiten."""
    model = embedded(torch.Tensor.zero_)
    model.embedding.requires_grad_(False)
    for layer in model.layers:
        layer.linear.bias.data.zero_()
    return model


def nan_in_the_gradient():
    """The backward pass gives sequence 0 NaN at the end of the stream, and heals it at its beginning."""
    model = Chain()

    def spoil(y):
        y.register_hook(lambda g: torch.cat([torch.full_like(g[:1], torch.nan), g[1:]]))
        return y

    def heal(x):
        x.register_hook(lambda g: torch.where(g.isfinite(), g, 0.0))
        return x

    # Blocks 0 to 2 see the NaN of the end only as a reference; their own gradients pass a healed state.
    model.layers[-1].after, model.layers[-1].before = spoil, heal
    for parameter in (*model.layers[-1].parameters(), *model.head.parameters()):
        parameter.requires_grad_(False)
    return model


def nan_weight():
    model = gpt2(dropout=0.0)
    model.transformer.h[1].mlp.c_proj.weight.data[0, 0] = torch.nan
    return model


def jordan_sums(p, q, weights=None):
    """Sums of a stream that a Jordan block carries on: its operator has one eigenvector, and a gradient beyond 1e40."""
    real, eye = unpatched_sums(p, q, weights), torch.eye(p.shape[1], dtype=torch.float64)
    jordan = 1.2 * eye + torch.diag(torch.ones(len(eye) - 1, dtype=torch.float64), 1)
    sums = 1000 * torch.cat([eye.new_ones(1), eye.new_zeros(2 * len(eye)), eye.flatten(), jordan.flatten()])
    return sums + (real - real.detach())  # the graph is that of the states


def fails(matrices):
    raise np.linalg.LinAlgError("Eigenvalues did not converge")


def infinite(matrix):
    """The inverse of the eigenvectors of a nearly defective operator."""
    return np.full(matrix.shape, np.inf)


def lapack_that(name, function):
    return mock.patch.object(np.linalg, name, function)


#: Name -> how the model is made, what is patched, and the layers that are dropped in each step (None: not said).
RUNS = {
    "nan": (lambda: poisoned(torch.nan), None, 2),
    "inf": (lambda: poisoned(torch.inf), None, 2),
    "huge": (lambda: poisoned(1e18), None, 1),
    "rank one": (lambda: embedded(rank_one), None, 0),
    "constant": (lambda: embedded(lambda weight: weight.fill_(1.0)), None, None),
    "zero": (frozen_zero, None, None),
    "nan in the gradient": (nan_in_the_gradient, None, None),
    "nan weight": (nan_weight, None, None),
    "defective": (Chain, lambda: mock.patch.object(measure, "projected_sums", jordan_sums), 4),
    "no convergence": (Chain, lambda: lapack_that("eigvals", fails), 4),
    "infinite gradient": (Chain, lambda: lapack_that("inv", infinite), 4),
}


def main(folder):
    torch.set_num_threads(1)
    for name, (make, patch, _) in RUNS.items():
        for schedule in ("balanced", "paper"):
            settings = {"kss_schedule": schedule, "kss_every": 1, "kss_layer_fraction": 1.0, "max_steps": STEPS}
            print(json.dumps({"run": name, "schedule": schedule}), flush=True)
            results = {}
            for kss in (False, True):
                kept = Gradients()
                with patch() if patch else mock.patch.dict({}):
                    run = trained(
                        Path(folder, "run"),
                        make(),
                        token_rows(),
                        callbacks=[kept],
                        blocks=None if name == "nan weight" else "layers",
                        kss=kss,
                        **settings,
                    )
                results[kss] = {
                    "steps": run.state.global_step,
                    "dropped": logged(run, "kss/dropped"),
                    "losses": logged(run, "loss"),
                    "bad": [int(sum((~g.isfinite()).sum() for g in step.values())) for step in kept.steps],
                    "bad_weights": int(sum((~p.isfinite()).sum() for p in run.model.parameters())),
                }
            row = {"run": name, "schedule": schedule, "plain": results[False], "kss": results[True]}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
