"""The default schedule: the gradient of a one-sided penalty is added at the hidden states, bounded by the task's own."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hf_rksp.capture import Layout, Transition
from hf_rksp.capture.tap import GradientRule
from hf_rksp.config import BalancedKSSConfig
from hf_rksp.spectral.shaping import state_gradients
from hf_rksp.training.kss.schedule import Measured, Schedule, sizes_of_sequences


class Balanced(Schedule[BalancedKSSConfig]):
    """Pushes on the layers whose spectral radius is above the threshold, in the backward pass.

    Each sequence's gradient of the penalty is scaled to ``weight`` times that sequence's gradient of the task at the end of the
    stream, to which this stream has added nothing yet. That is the same however sequences are spread over microbatches and
    processes and however the loss is scaled, and one bad sequence does not outweigh the rest.
    """

    #: Relative excess over the threshold from which on it acts with its full weight.
    full_strength = 0.5

    def act(self, measured: Measured) -> None:
        """Set what the backward pass adds at the states."""
        reference: list[Tensor] = []
        # The graph will hold the rules: they may hold nothing that holds the graph.
        last, layout = measured.last, measured.layout
        for place, layer in enumerate(measured.layers):
            strength = self.strength(layer, last, float(measured.radii[place]))
            if not strength:
                continue
            basis = measured.directions[place]
            at_p, at_q = state_gradients(*measured.projected[place], measured.gradients[place], measured.weights)
            layer.at_x = self.rule(layout, at_p, basis, strength, reference)
            layer.at_y = self.rule(layout, at_q, basis, strength, reference)
        own = last.at_y

        def take_reference(gradient: Tensor) -> Tensor | None:
            # Anew if a graph is gone over twice.
            reference[:] = [sizes_of_sequences(layout.read(gradient), layout)]
            return own and own(gradient)

        last.at_y = take_reference

    def strength(self, layer: Transition, last: Transition, radius: float) -> float:
        """Share of the task's gradient that is added at a block of this spectral radius."""
        strength = (radius / self.config.upper_threshold - 1) / self.full_strength
        if not strength > 0:  # NaN too, of which min() would make 1
            return 0.0
        return min(1.0, strength) * self.block_weight(layer, last) * self.config.weight

    def rule(
        self, layout: Layout, projected: Tensor, basis: Tensor, strength: float, reference: list[Tensor]
    ) -> GradientRule:
        """What the backward pass does at one state.

        Args:
            layout: how the state is read.
            projected: gradient of the penalty at the projected states, shape ``(N, r)``.
            basis: the directions, shape ``(d, r)``.
            strength: from `strength`.
            reference: will hold the size of each sequence's gradient at the end of the stream.
        """
        return functools.partial(self.add, layout, projected, basis, strength, reference)

    def add(
        self,
        layout: Layout,
        projected: Tensor,
        basis: Tensor,
        strength: float,
        reference: list[Tensor],
        gradient: Tensor,
    ) -> Tensor | None:
        """``gradient`` plus the penalty's, scaled for each sequence; what is not finite is left out and counted."""
        if not reference:  # the end of the stream got no gradient: it is frozen, or the loss does not see it
            return None
        rows = layout.read(gradient)
        projected = projected.reshape(*rows.shape[:2], -1)
        size = sizes_of_sequences(projected, layout)
        scale = torch.where(size > 0, strength * reference[0] / size, 0.0)
        good = scale.isfinite() & size.isfinite()
        self.lost = self.lost + (~good).sum()
        scale = torch.where(good, scale, 0.0)
        scale = (scale if layout.owner is None else scale[layout.owner]).reshape(-1, 1, 1)
        added = torch.where(scale > 0, scale * projected, 0.0) @ basis.mT
        return gradient + layout.write(added.to(gradient.dtype), gradient.shape)
