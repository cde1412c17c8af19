"""The methods that are compared: what each does to the network, the optimizer, the loss and the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.pytorch_utils import Conv1D

from scripts.reproduce.architecture_warmup.attention import written_out

#: What a method of config.yaml may set.
KEYS = {
    "kss", "weights", "optimizer", "warmup", "rho", "embedding", "attention", "qk_clip", "penalty", "penalty_weight",
    "penalty_every",
}  # fmt: skip
_NAME = "paper_methods"
#: muP: the width at which it is the standard parametrisation, and its initialisation the network's own.
BASE_WIDTH = 32


def prepare(model: Any, method: Mapping[str, Any], draw: torch.Generator) -> None:
    """Change the network as the method says, before its optimizer is made.

    Args:
        model: GPT-2 of transformers.
        method: of config.yaml.
        draw: random numbers of the run.
    """
    model.config._attn_implementation = _NAME
    layers = [module for module in model.modules() if isinstance(module, GPT2Attention)]
    for module in layers:
        # Written out, it keeps its logits and has a second derivative.
        module.written_out = "qk_clip" in method or method.get("penalty") in ("gradient", "jacobian")
        module.width_scale = 1.0
    if method.get("attention") == "norm":
        for module in layers:
            module.q_norm, module.k_norm = (nn.RMSNorm(module.head_dim, eps=1e-6) for _ in range(2))
    matrices = [module for module in model.transformer.h.modules() if isinstance(module, Conv1D)]
    for matrix in matrices:
        if method.get("weights") == "spectral norm":  # Miyato et al., arXiv:1802.05957
            parametrizations.spectral_norm(matrix)
        elif method.get("weights") == "weight norm":  # Salimans and Kingma, arXiv:1602.07868; a gain for each output
            parametrizations.weight_norm(matrix, dim=1)
    if method.get("embedding") == "scale":  # Takase et al., arXiv:2312.16903: the states have variance 1 at first
        tables = (model.transformer.wte, model.transformer.wpe)
        scale = float(sum(table.weight.detach().var() for table in tables)) ** -0.5
        # The dropout takes the sum of both embeddings.
        model.transformer.drop.register_forward_pre_hook(lambda module, inputs: (inputs[0] * scale,))
    if method.get("optimizer") == "mup":
        _mup(model, layers)


def _mup(model: Any, layers: list[Any]) -> None:
    """Tensor Programs V (arXiv:2203.03466), Table 8, for Adam: logits over the width, attention over the size of a head.

    The initialisation is that of the network at the base width, with variance that falls as 1 / width; the learning rates are in
    `optimizer_of`.
    """
    factor = model.config.n_embd / BASE_WIDTH
    for module in layers:
        module.width_scale = factor**-0.5
    for block in model.transformer.h:
        for matrix in block.modules():
            if isinstance(matrix, Conv1D):
                matrix.weight.data.mul_(factor**-0.5)
    model.lm_head.register_forward_pre_hook(lambda module, inputs: (inputs[0] / factor,))


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **rest: Any
) -> tuple[Tensor, None]:
    """Causal attention of shape ``(batch, heads, tokens, size)``: QK-norm, muP's scale, and the largest logits for QK-clip."""
    if hasattr(module, "q_norm"):  # Henry et al., arXiv:2010.04245; with gains, as in arXiv:2302.05442
        query, key = module.q_norm(query), module.k_norm(key)
    scaling = scaling * module.width_scale
    if module.written_out:
        return written_out(module, query, key, value, attention_mask, scaling)
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return mixed.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(_NAME, attention)


@torch.no_grad()
def clip_queries_and_keys(model: nn.Module, limit: float) -> None:
    """QK-clip (arXiv:2507.20534): a head whose largest logit is above the limit gets smaller queries and keys."""
    for module in model.modules():
        if not isinstance(module, GPT2Attention):
            continue
        logits = module.largest_logit
        scale = (limit / logits).clamp(max=1.0).where(logits > limit, 1.0).sqrt().repeat_interleave(module.head_dim)
        width = len(scale)
        for part in (slice(0, width), slice(width, 2 * width)):
            module.c_attn.weight[:, part] *= scale
            module.c_attn.bias[part] *= scale


def optimizer_of(model: Any, method: Mapping[str, Any], lr: float, decay: float) -> torch.optim.Optimizer:
    """The optimizer of a method; AdamW unless it names one.

    Raises:
        ImportError: pytorch-optimizer is not installed.
    """
    name = method.get("optimizer", "adamw")
    if name == "adamw" and "rho" not in method:
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay, fused=True)
    if name == "mup":
        factor = model.config.n_embd / BASE_WIDTH
        hidden, rest = _split(model)
        groups = [{"params": hidden, "lr": lr / factor, "weight_decay": decay * factor}, {"params": rest, "lr": lr}]
        return torch.optim.AdamW(groups, lr=lr, weight_decay=decay, fused=True)
    if name == "muon":
        return Muon(model, lr, decay)
    import pytorch_optimizer as peers

    if name == "lion":
        lion: torch.optim.Optimizer = peers.Lion(model.parameters(), lr=lr, weight_decay=decay)
        return lion
    if name == "lamb":
        # No clipping of its own: clipping is a column of this experiment.
        lamb: torch.optim.Optimizer = peers.Lamb(model.parameters(), lr=lr, weight_decay=decay, pre_norm=False)
        return lamb
    sam: torch.optim.Optimizer = peers.SAM(
        model.parameters(), torch.optim.AdamW, rho=method["rho"], lr=lr, weight_decay=decay
    )
    return sam


def _split(model: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of the blocks, and all other weights."""
    hidden = [weight for weight in model.transformer.h.parameters() if weight.ndim == 2]
    chosen = set(map(id, hidden))
    return hidden, [weight for weight in model.parameters() if id(weight) not in chosen]


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of the blocks, with updates of the size of AdamW's (arXiv:2502.16982), and AdamW for the rest."""

    def __init__(self, model: Any, lr: float, decay: float) -> None:
        hidden, rest = _split(model)
        self.parts = [
            torch.optim.Muon(hidden, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=lr, weight_decay=decay),
        ]
        super().__init__([{"params": hidden}, {"params": rest}], {"lr": lr})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step of both."""
        for part in self.parts:
            part.step()
