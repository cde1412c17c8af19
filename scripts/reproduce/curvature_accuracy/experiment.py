"""Estimates of the largest eigenvalue of Adam's preconditioned Hessian along a run, with few products, against converged ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from hf_rksp.capture.calling import untouched
from hf_rksp.capture.hvp import hessian_at, trainable
from hf_rksp.capture.shards import to_vector
from hf_rksp.spectral.curvature import LargestEigenvalue, largest_eigenvalue, power_iteration
from hf_rksp.training.operator import Spread, preconditioned
from hf_rksp.training.preconditioner import read_preconditioner
from scripts.reproduce.data import wikitext_file
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.risk.networks import FAMILIES, make
from scripts.reproduce.risk.tasks import TASKS, batch

#: Never converged: every product is made.
_ALL = 1e-12
#: Products of a first reading, for those that go on from it.
_COLD = 40
#: Share of noise in a start.
_NOISE = 0.05


class Counted:
    """An operator that counts its products."""

    def __init__(self, product: Callable[[Tensor], Tensor], size: int) -> None:
        self.product, self.size, self.count = product, size, 0

    def __call__(self, vector: Tensor) -> Tensor:
        self.count += 1
        return self.product(vector)

    def scipy(self) -> LinearOperator:
        """The same for scipy."""
        return LinearOperator(
            (self.size, self.size),
            matvec=lambda v: self(torch.from_numpy(numpy.array(v)).reshape(-1)).numpy(),
            dtype=float,
        )


Search = Callable[[Counted, Tensor, int, float], LargestEigenvalue]


def lanczos(operator: Counted, start: Tensor, products: int, last: float) -> LargestEigenvalue:
    """Ours, without an early end."""
    return largest_eigenvalue(operator, start, tolerance=_ALL, max_products=products, basis=max(products, 4))


def until(tolerance: float, least: int) -> Search:
    """Ours, ended at a relative residual, with four vectors in memory."""
    return lambda operator, start, products, last: largest_eigenvalue(
        operator, start, tolerance=tolerance, max_products=products, min_products=least, basis=4
    )


def power(operator: Counted, start: Tensor, products: int, last: float) -> LargestEigenvalue:
    """As published."""
    return power_iteration(operator, start, tolerance=_ALL, max_products=products)


def shifted(operator: Counted, start: Tensor, products: int, last: float) -> LargestEigenvalue:
    """Power iteration on ``G + c``, with the last estimate as ``c``: eigenvalues down to ``-c`` are no longer the largest."""
    shift = max(last, 0.0) if math.isfinite(last) else 0.0
    found = power_iteration(lambda v: operator(v).add_(v, alpha=shift), start, tolerance=_ALL, max_products=products)
    return LargestEigenvalue(found.value - shift, found.residual, found.products, found.converged, found.vector)


def locally_optimal(operator: Counted, start: Tensor, products: int, last: float) -> LargestEigenvalue:
    """LOBPCG with one vector: Rayleigh-Ritz on the vector, its residual and the last direction; a product per iteration.

    Not that of scipy, which returns the iterate with the smallest residual: in few iterations that is often its start.
    """
    x = start / start.norm()
    ax, p, ap = operator(x), None, None
    value = float(x @ ax)
    for _ in range(products - 1):
        r = ax - value * x
        r /= r.norm()
        ar = operator(r)
        basis, image = (
            torch.stack([x, r, *([] if p is None else [p])], 1),
            torch.stack([ax, ar, *([] if ap is None else [ap])], 1),
        )
        q, upper = torch.linalg.qr(basis)
        image = torch.linalg.solve_triangular(upper, image, upper=True, left=False)
        values, vectors = torch.linalg.eigh((q.T @ image + image.T @ q) / 2)
        value, best = float(values[-1]), vectors[:, -1]
        new, new_image = q @ best, image @ best
        p, ap = new - (x @ new) * x, new_image - (x @ new) * ax
        size = p.norm()
        p, ap, x, ax = p / size, ap / size, new, new_image
    return LargestEigenvalue(value, float((ax - value * x).norm()), products, False, x)


#: Name -> search, whether it goes on from its last vector, products if not those of the settings. The rows of `tune` were made with
#: another list, from which the first entry was chosen.
METHODS: dict[str, tuple[Search, bool, int | None]] = {
    "the monitor: warm Lanczos and noise, 4 to 16 products, residual 5%": (until(0.05, 4), True, 16),
    "warm Lanczos": (lanczos, True, None),
    "warm Lanczos and noise": (lanczos, True, None),
    "warm Lanczos and noise, 8 products": (lanczos, True, 8),
    "warm power iteration (the paper)": (power, True, None),
    "warm power iteration, shifted": (shifted, True, None),
    "warm LOBPCG": (locally_optimal, True, None),
    "cold power iteration": (power, False, None),
    "cold power iteration, 20 products": (power, False, 20),
    "cold Lanczos": (lanczos, False, None),
    "cold Lanczos, 20 products": (lanczos, False, 20),
}


class Follower:
    """One method along a run. It keeps ``w = P^(-1/2) u``."""

    def __init__(self, name: str, products: int, seed: int) -> None:
        self.search, self.warm, own = METHODS[name]
        self.noisy = "noise" in name
        self.products = own or products
        self.draw = torch.Generator().manual_seed(seed)
        self.kept: Tensor | None = None
        self.last = math.nan
        self.estimates: list[float] = []
        self.used: list[int] = []

    def read(self, operator: Callable[[Tensor], Tensor], scale: Tensor) -> None:
        """An estimate at the present weights."""
        counted = Counted(operator, len(scale))
        noise = torch.randn(len(scale), generator=self.draw, dtype=scale.dtype) * (scale > 0)
        start, products = noise, self.products
        if self.kept is not None:
            start = torch.where(scale > 0, self.kept / scale, 0.0)
            if self.noisy:  # an eigenvector that has become the second one would otherwise be found again for ever
                start = start / start.norm() + _NOISE * noise / noise.norm()
        elif self.warm:
            products = _COLD
        found = self.search(counted, start, products, self.last)
        if self.warm:
            self.kept = found.vector * scale
        self.last = found.value
        self.estimates.append(found.value)
        self.used.append(counted.count)


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there."""
    wikitext_file("validation")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One run: the converged eigenvalue at every reading, and what each method says."""
    shape = {name: settings[name] for name in ("width", "layers", "heads", "std", "length")}
    model = (
        make(FAMILIES[job["family"]], shape | {"vocabulary": TASKS["text"].vocabulary}, job["seed"]).double().train()
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings["lr"], betas=(0.9, settings["beta2"]), weight_decay=settings["decay"]
    )
    weights = trainable(model)
    followers = {name: Follower(name, settings["products"], job["seed"]) for name in METHODS}
    truth, along, losses, spent, vector = [], [], [], [], None
    first = batch("text", job["seed"], 0, settings["sequences"], settings["length"])
    for step in range(settings["steps"]):
        ids, labels = batch("text", job["seed"], step, settings["sequences"], settings["length"])
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * min((step + 1) / settings["warmup"], 1.0)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(float(loss.detach()), 4))
        if step % job["every"]:
            continue
        x, y = first if job["data"] == "first" else (ids, labels)
        by, spread = read_preconditioner(optimizer, weights), Spread(weights)
        with untouched(model), hessian_at(model, lambda: model(input_ids=x, labels=y).loss) as hessian:  # noqa: B023
            operator = preconditioned(hessian, weights, by.scale, spread)
            gradient = to_vector(hessian.gradient, weights, by.scale.dtype) * by.scale
            counted = Counted(operator, len(by.scale))
            start = gradient if vector is None else torch.where(by.scale > 0, vector / by.scale, 0.0)
            values, vectors = eigsh(
                counted.scipy(), k=1, which="LA", v0=start.numpy(), tol=settings["reference_tolerance"],
                maxiter=settings["reference_products"],
            )  # fmt: skip
            truth.append(float(values[0]))
            vector = torch.from_numpy(vectors[:, 0].copy()) * by.scale
            spent.append(counted.count)
            bent = operator(gradient)
            along.append(float(gradient @ bent / (gradient @ gradient)))
            for follower in followers.values():
                follower.read(operator, by.scale)
    return {
        "parameters": sum(weight.numel() for weight in weights.values()),
        "method": hessian.method,
        "loss": losses[:: job["every"]],
        "truth": _rounded(truth),
        "along": _rounded(along),
        "reference_products": int(numpy.median(spent)),
        "estimates": {name: _rounded(one.estimates) for name, one in followers.items()},
        "products": {name: round(float(numpy.mean(one.used[1:])), 2) for name, one in followers.items()},
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def errors(row: dict[str, Any], name: str) -> numpy.ndarray:
    """Relative errors of a method in a row, without the first reading."""
    truth, found = numpy.array(row["truth"]), numpy.array(row["estimates"][name])
    return abs(found - truth)[1:] / abs(truth)[1:]


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Median and 95th percentile of the relative error, by batch and by interval; then by network for the default."""

    def where(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["data"], row["every"]

    groups = [(key, list(group)) for key, group in groupby(sorted(rows, key=where), key=where)]
    heads = ["method", "mean products", *(f"{_DATA[data]}, every {every} steps" for (data, every), _ in groups)]
    lines = []
    names = [name for name in rows[0]["estimates"] if all(name in row["estimates"] for row in rows)]
    for name in names:
        cells = []
        for _, group in groups:
            found = numpy.concatenate([errors(row, name) for row in group])
            cells.append(f"{numpy.median(found):.1%}, {numpy.percentile(found, 95):.0%}")
        lines.append([name, f"{numpy.mean([row['products'][name] for row in rows]):.1f}", *cells])
    by_family = []
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [[row for row in group if row["family"] == family] for _, group in groups]
        found = [numpy.concatenate([errors(row, names[0]) for row in group]) for group in mine]
        by_family.append([family, *(f"{numpy.median(one):.1%}, {numpy.percentile(one, 95):.0%}" for one in found)])
    return "\n".join(
        [
            "Relative error of the largest eigenvalue: median, 95th percentile.", "",
            *table(heads, lines), "",
            f"{names[0][:1].upper()}{names[0][1:]}, by network:", "",
            *table(["network", *heads[2:]], by_family),
        ]
    ) + "\n"  # fmt: skip


_DATA = {"first": "same batch", "batch": "batch of the step"}
