"""What of a network decides whether KSS acts: norm, attention, random weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_rksp.capture import Stack
from hf_rksp.capture.calling import uncompiled
from hf_rksp.capture.drawn import weights_are_trained
from hf_rksp.capture.linears import find_linears, query_key_pairs
from hf_rksp.capture.norms import Norm, find_norms, norm_of, norms_of_states
from hf_rksp.risk.calibrated import ATTENTION_FREE
from hf_rksp.training.kss.look import look

Around = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True)
class Network:
    """What the choice depends on.

    Attributes:
        norm: of the blocks.
        attention: whether every block has it.
        trained: whether the weights are trained, or may be.
        causal: whether it is a causal language model.
        behind: whether a norm stands behind a part of a block (OLMo-2, Gemma-3), or where norms stand could not be seen.
    """

    norm: Norm
    attention: bool
    trained: bool
    causal: bool
    behind: bool = False

    @property
    def gains_always(self) -> bool:
        """Whether KSS acts at every learning rate: the forecast is not needed then."""
        return self.norm == "rms" and not self.behind and self.attention and self.causal and not self.trained


def network_of(
    model: nn.Module,
    stacks: Sequence[Stack],
    pass_if_trained: bool = True,
    around: Around = contextlib.nullcontext,
) -> Network:
    """Look at a model that no engine has sharded yet; it is left as it is.

    Args:
        stacks: its residual blocks.
        pass_if_trained: make the pass over random tokens also if the weights are trained. Without a pass attention is told by the
            names of projections.
        around: context of a forward pass, such as autocast.
    """
    config, norms = getattr(model, "config", None), find_norms(stacks)
    trained = weights_are_trained(model, stacks, norms)
    has_attention, seen = getattr(config, "model_type", None) not in ATTENTION_FREE, None
    if has_attention and (pass_if_trained or not trained):
        with contextlib.suppress(Exception), around():  # it takes something else than token ids, or more
            seen = look(model, stacks, norms)
    base: Any = uncompiled(model)
    name = type(base.get_base_model() if hasattr(base, "get_base_model") else base).__name__
    causal = "CausalLM" in name or "LMHead" in name
    blocks = sum(len(stack.blocks) for stack in stacks)
    if seen is None or not seen.least:
        return Network(
            norm_of(norms_of_states(norms)), has_attention and _pairs(stacks, config) >= blocks, trained, causal, True
        )
    found = norm_of([norm for norm in norms if norm.module in seen.normalise])
    # A flash kernel is not seen, and the projections in front of it are.
    attention = min(seen.least.values()) > 0 or (_own_kernel(config) and _pairs(stacks, config) >= blocks)
    behind = seen.behind or (found == "none" and seen.functional != "none")
    return Network(seen.functional if found == "none" else found, attention, trained, causal, behind)


def _pairs(stacks: Sequence[Stack], config: Any) -> int:
    """Queries and keys that are found by the names of their projections."""
    with contextlib.suppress(Exception):  # a configuration may have heads of several sizes
        return len(query_key_pairs(find_linears(stacks, config), config))
    return 0


def _own_kernel(config: Any) -> bool:
    return getattr(config, "_attn_implementation", None) not in (None, "eager", "sdpa")
