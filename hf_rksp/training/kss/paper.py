"""The published schedule: the penalty of Eq. 14 is a term of the loss (Eq. 15)."""

from __future__ import annotations

from torch import Tensor

from hf_rksp.config import PaperKSSConfig
from hf_rksp.training.kss.schedule import Measured, Schedule


class Paper(Schedule[PaperKSSConfig]):
    """Adds the weighted mean of the penalties to the loss."""

    has_term = True

    def act(self, measured: Measured) -> Tensor:
        """The sum of the penalties of the layers, with the gradient of the penalty on the tokens of all processes.

        The gradient at the sums of all processes is known, so that no collective has to run in the backward pass. Gradients are
        averaged over the processes and over the passes of a step that was measured beforehand, hence ``copies``.
        """
        shares = [self.block_weight(layer, measured.last) for layer in measured.layers]
        total = measured.sums[0].new_tensor(float(shares @ measured.solved.penalties))
        for place, (own, share) in enumerate(zip(measured.sums, shares, strict=True)):
            # Of a layer that was dropped the sums may be NaN, and 0 times NaN is NaN.
            if measured.solved.good[place]:
                pull = ((own - own.detach()) * (share * measured.gradients[place])).sum()
                total = total + pull * measured.copies
        return total
