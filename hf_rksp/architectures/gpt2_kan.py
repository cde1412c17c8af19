"""GPT-2 whose MLPs are Kolmogorov-Arnold networks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, initialization

from hf_rksp.architectures.host import Host
from hf_rksp.architectures.splines import KanLinear


class GPT2KanConfig(GPT2Config):
    """GPT-2's, with the splines.

    Args:
        spline_order: degree + 1 of the B-splines. spline_intervals: of the grid on [-spline_reach, spline_reach].
        spline_std: standard deviation of the coefficients at initialisation (.1 in the KAN paper, section 2.2).
    """

    model_type = "gpt2_kan"

    def __init__(
        self,
        spline_order: int = 4,
        spline_intervals: int = 5,
        spline_reach: float = 3.0,
        spline_std: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self.spline_order, self.spline_intervals = spline_order, spline_intervals
        self.spline_reach, self.spline_std = spline_reach, spline_std
        super().__init__(**kwargs)


class GPT2KanMLP(nn.Module):
    """Two layers of splines; they need no activation between them."""

    def __init__(self, config: GPT2KanConfig) -> None:
        super().__init__()
        inner = config.n_inner or config.n_embd
        splines = (config.spline_intervals, config.spline_order, config.spline_reach)
        self.expand = KanLinear(config.n_embd, inner, *splines)
        self.contract = KanLinear(inner, config.n_embd, *splines)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, states: Tensor) -> Tensor:
        """``(..., d)`` to ``(..., d)``."""
        out: Tensor = self.dropout(self.contract(self.expand(states)))
        return out


class _Initialised(Host):
    """The scheme of the KAN paper for the splines, GPT-2's for the rest."""

    config: Any

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, KanLinear):
            initialization.xavier_normal_(module.base_weight)
            initialization.normal_(module.spline_weight, 0.0, self.config.spline_std)


class GPT2KanModel(_Initialised, GPT2Model):
    """Without a head."""

    config_class = GPT2KanConfig

    def __init__(self, config: GPT2KanConfig) -> None:
        super().__init__(config)
        for block in self.h:
            block.mlp = GPT2KanMLP(config)
        self.post_init()


class GPT2KanForCausalLM(_Initialised, GPT2LMHeadModel):
    """With the head for language modelling."""

    config_class = GPT2KanConfig

    def __init__(self, config: GPT2KanConfig) -> None:
        super().__init__(config)
        self.transformer = GPT2KanModel(config)
        self.post_init()
