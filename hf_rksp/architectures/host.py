"""The model that a mixin is put in front of, as the type checker sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    class Host(PreTrainedModel):
        """`PreTrainedModel`, with types for the methods that transformers has without."""

        def post_init(self) -> None:
            """Fill the weights, at the end of the constructor."""

        def _init_weights(self, module: nn.Module) -> None: ...

else:
    Host = object
