"""Five ways in which a run fails. Each begins at a step, or is there from the beginning, and can be left out for a control."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from scripts.reproduce import data
from scripts.reproduce.kss_families.networks import no_norm
from scripts.reproduce.risk.networks import FAMILIES, make

_NAME = "cut_short"


class Fault:
    """Nothing fails; the ways below change one of these.

    Args:
        settings: of the way.
        begin: first step at which the fault acts; infinite for a control.
    """

    def __init__(self, settings: Mapping[str, Any], begin: float) -> None:
        self.settings, self.begin = settings, begin

    def prepare(self, model: Any) -> None:
        """Before the first step."""

    def before(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Before the forward pass of a step."""

    def batch(self, step: int, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch of a step."""
        return ids, labels

    def after(self, step: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """After the optimizer's step."""


class Bits(Fault):
    """Attention tensors in bfloat16 with their low bits cut: each number moves towards zero (arXiv:2606.28116).

    The queries grow by a share in every step, as the logits of large networks without QK-norm do: cut bits weigh more then.
    """

    def prepare(self, model: Any) -> None:
        model.config._attn_implementation = _NAME
        self._cut(model, 0)

    def after(self, step: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
        if step + 1 == self.begin:
            self._cut(model, self.settings["bits"])
        if step + 1 >= self.begin:
            with torch.no_grad():
                for layer in model.model.layers:
                    layer.self_attn.q_proj.weight *= 1 + self.settings["logits"]

    @staticmethod
    def _cut(model: Any, bits: int) -> None:
        for module in model.modules():
            if hasattr(module, "scaling") or hasattr(module, "scale_attn_weights"):
                module.bits_cut = bits


class Growth(Fault):
    """The largest singular value of one feed-forward layer grows by a share in every step."""

    def after(self, step: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
        if step < self.begin:
            return
        weight = model.model.layers[self.settings["layer"]].mlp.down_proj.weight
        with torch.no_grad():
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            weight += self.settings["growth"] * values[0] * torch.outer(left[:, 0], right[0])


class Corrupted(Fault):
    """A growing share of the passages is random bytes, until every passage is. The share grows with the square of the steps."""

    def __init__(self, settings: Mapping[str, Any], begin: float) -> None:
        super().__init__(settings, begin)
        self.draw = torch.Generator().manual_seed(0)

    def batch(self, step: int, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        share = max(0.0, (step - self.begin) / self.settings["ramp"]) ** 2
        bad = torch.rand(len(ids), generator=self.draw) < share
        ids = torch.where(bad[:, None], torch.randint(256, ids.shape, generator=self.draw), ids)
        return ids, ids


class Moment(Fault):
    """Adam's second moment forgets: what it held decays, until ``1 - beta2`` times the last squared gradient is left.

    It is changed before a step, and not after: who reads it after a step sees what the step has used.
    """

    def __init__(self, settings: Mapping[str, Any], begin: float) -> None:
        super().__init__(settings, begin)
        self.moments: dict[Tensor, Tensor] = {}

    def before(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        if step <= self.begin:
            return
        for weight, state in optimizer.state.items():
            kept = self.moments.setdefault(weight, state["exp_avg_sq"].clone())
            state["exp_avg_sq"].copy_(kept.mul_(self.settings["kept"]))


@dataclass(frozen=True)
class Way:
    """A network, its data, and what goes wrong."""

    fault: type[Fault]
    network: Callable[[Mapping[str, Any], int], Any]
    batch: Callable[[torch.Generator, Mapping[str, Any]], tuple[Tensor, Tensor]]


def cut(x: Tensor, bits: int) -> Tensor:
    """``x`` in bfloat16 without its lowest ``bits`` bits, or as it is if none are cut; the gradient passes unchanged."""
    if not bits:
        return x
    low = x.detach().bfloat16().view(torch.int16) & (-1 << bits)
    return x + (low.view(torch.bfloat16).to(x.dtype) - x).detach()


def cut_short(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Causal attention of cut queries, keys, values, probabilities and results; shapes ``(batch, heads, tokens, size)``."""
    bits = module.bits_cut
    query, key, value = (cut(states, bits) for states in (query, key, value))
    logits = cut(query @ key.mT * (scaling or query.shape[-1] ** -0.5), bits)
    tokens = logits.shape[-1]
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=logits.device).triu(1)
    shares = cut(logits.masked_fill(future, -torch.inf).softmax(-1), bits)
    return cut(shares @ value, bits).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(_NAME, cut_short)


def _llama(settings: Mapping[str, Any], seed: int) -> nn.Module:
    shape = {name: settings[name] for name in ("width", "layers", "heads", "std", "length")} | {"vocabulary": 256}
    return make(FAMILIES["llama"], shape, seed)


def _recall_network(settings: Mapping[str, Any], seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    model: Any = no_norm()
    model.config._attn_implementation = "eager"  # Hessian products need a second derivative
    return model


def _text(generator: torch.Generator, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    ids = data.passages(data.wikitext("test"), generator, settings["sequences"], settings["length"])
    return ids, ids


def _recall(generator: torch.Generator, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    return data.recall(generator, 32)


WAYS = {
    "rate": Way(Fault, _recall_network, _recall),
    "bits": Way(Bits, _llama, _text),
    "growth": Way(Growth, _llama, _text),
    "batch": Way(Corrupted, _llama, _text),
    "moment": Way(Moment, _llama, _text),
}
