"""The Kreiss constant as a bracket: how far powers of the operator can grow before the spectrum takes over.

Source: RKSP Eq. 29 and 31. ``K(A) = sup over |z| > 1 of (|z| - 1) ||(zI - A)^{-1}||`` is infinite as soon as one eigenvalue
lies outside the unit circle, which is the rule for residual blocks at initialisation. We therefore give it for the disc
of radius ``s = max(1, spectral_radius)``, which is K(A / s): the paper's own number where that is finite, and growth
beyond ``s^t`` where it is not. Then ``1 <= K <= kappa(V)`` always holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rksp.spectral.modal import ModalBasis, real_product

_ANGLES, _LEADING, _POWER_STEPS, _ROUNDS = 12, 4, 3, 2
_CANDIDATES, _CERTIFYING_STEPS = 12, 8
_SIMPLE = 1e-6  # an eigenvalue is simple if no other one is within this share of the radius
_DISTANCES = (0.003, 0.02, 0.1, 0.4, 1.5)


@dataclass(frozen=True)
class KreissBracket:
    """``lower <= K <= upper`` for the disc of radius ``disc_radius``.

    Attributes:
        lower: the largest value that the search on the resolvent found; each is a true lower bound, at least 1.
        upper: kappa(V) (Eq. 31); ``inf`` for a defective operator.
        disc_radius: max(1, spectral radius). Above 1 the constant of Eq. 29 itself is infinite.
    """

    lower: float
    upper: float
    disc_radius: float


def kreiss_constant(matrix: Tensor, modal: ModalBasis, condition: float) -> KreissBracket:
    """Bracket of the Kreiss constant of a real ``(k, k)`` operator.

    Args:
        matrix: A, float64.
        modal: its eigendecomposition.
        condition: kappa(V), which is the upper end.

    >>> from hf_rksp.spectral.modal import modal_basis
    >>> normal = torch.diag(torch.tensor([0.5, -0.25], dtype=torch.float64))  # powers of a normal operator do not grow
    >>> kreiss_constant(normal, modal_basis(normal), condition=1.0)
    KreissBracket(lower=1.0, upper=1.0, disc_radius=1.0)
    """
    moduli = modal.eigenvalues.abs()
    radius = max(1.0, float(moduli.max()))
    if modal.real_inverse is None:
        return KreissBracket(1.0, math.inf, radius)
    best = 1.0
    if radius > 1:
        # Towards a simple eigenvalue on the disc the quotient tends to that eigenvalue's condition number. Those of a
        # repeated one belong to an arbitrary basis of its eigenspace and bound nothing.
        for index in torch.nonzero(moduli >= radius * (1 - 1e-12)).flatten().tolist():
            distances = (modal.eigenvalues - modal.eigenvalues[index]).abs()
            if int((distances < _SIMPLE * radius).sum()) == 1:
                best = max(best, float(modal.left_norms()[index]))
    # A is real, so the resolvent norm is symmetric about the real axis and half a circle of angles is enough.
    leading = modal.eigenvalues[moduli.argsort(descending=True)[: 2 * _LEADING]]
    uniform = torch.linspace(0, math.pi, _ANGLES, dtype=torch.float64)
    angles = torch.cat([uniform, torch.unique(leading.angle().abs())])
    distances = torch.tensor(_DISTANCES, dtype=torch.float64)
    coarse = modal.single_precision()
    width, ratio = math.pi / _ANGLES, 3.0
    for _ in range(_ROUNDS):
        grid_angle, grid_distance = torch.cartesian_prod(angles, distances).unbind(1)
        points = torch.polar(radius * (1 + grid_distance), grid_angle)
        top, image = _highest(points, points.abs() - radius, modal, coarse)
        angle, distance = float(grid_angle[top]), float(grid_distance[top])
        angles = angle + width / 2 * torch.linspace(-1, 1, 5, dtype=torch.float64)
        distances = distance * ratio ** torch.linspace(-0.5, 0.5, 5, dtype=torch.float64)
        width, ratio = width / 4, math.sqrt(ratio)
    certified = (radius * distance) * _certified_norm(matrix, points[top : top + 1], image, modal)
    # Rounding can lift the search a hair above the bound it must respect.
    return KreissBracket(min(max(best, certified), condition), condition, radius)


def _highest(points: Tensor, distances: Tensor, modal: ModalBasis, coarse: ModalBasis) -> tuple[int, Tensor]:
    """The point with the largest ``distance * ||(zI - A)^{-1}||``, and the image there of a nearly right singular vector.

    Norms are power-iteration estimates from below, at all points at once. One step, in single precision, tells most points
    apart; the later ones are for the highest few.

    Returns:
        Index of the point, and the image, shape ``(k, 1)``.
    """
    scale = _resolvent(points, coarse)
    # The left eigenvector of the nearest mode is where the resolvent is large: a better start than noise.
    images = _images(scale, coarse.from_modal_adjoint(scale.conj()), coarse)
    chosen = torch.arange(len(points))
    for step in range(1, _POWER_STEPS + 1):
        heights = distances[chosen] * torch.nan_to_num(torch.linalg.vector_norm(images, dim=0), nan=0.0, posinf=0.0)
        best = heights.topk(min(_CANDIDATES if step < _POWER_STEPS else 1, len(chosen))).indices
        chosen, images = chosen[best], images[:, best].to(torch.complex128)
        if step < _POWER_STEPS:
            scale = _resolvent(points[chosen], modal)
            images = _images(scale, _adjoint_images(scale, images, modal), modal)
    return int(chosen[0]), images


def _certified_norm(matrix: Tensor, point: Tensor, image: Tensor, modal: ModalBasis) -> float:
    """``||(zI - A)^{-1}||`` from below by power iteration from ``image``.

    The iteration uses the eigenvectors; the bound does not: ``||(zI - A)^{-1}|| >= ||v|| / ||(zI - A) v||`` for every v.
    """
    scale = _resolvent(point, modal)
    norm = 0.0
    for _ in range(_CERTIFYING_STEPS):
        shifted = point * image - real_product(matrix, image)
        bound = float(torch.linalg.vector_norm(image) / torch.linalg.vector_norm(shifted))
        if not math.isfinite(bound) or bound <= norm * (1 + 1e-6):
            break
        norm = bound
        image = _images(scale, _adjoint_images(scale, image, modal), modal)
    return norm


def _images(scale: Tensor, columns: Tensor, modal: ModalBasis) -> Tensor:
    """Resolvents, with their eigenvalues in ``scale``, times ``columns`` of unit length."""
    columns = columns / torch.linalg.vector_norm(columns, dim=0)
    return modal.from_modal(scale * modal.to_modal(columns))


def _adjoint_images(scale: Tensor, columns: Tensor, modal: ModalBasis) -> Tensor:
    return modal.from_modal_adjoint(scale.conj() * modal.to_modal_adjoint(columns))


def _resolvent(points: Tensor, modal: ModalBasis) -> Tensor:
    """``1 / (z - lambda)``, shape ``(k, m)``, in the precision of ``modal``."""
    return 1 / (points.to(modal.eigenvalues.dtype)[None, :] - modal.eigenvalues[:, None])
