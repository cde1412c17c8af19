"""The networks: GPT-2 of transformers with six ways to normalise, and further families as transformers has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

#: What a network is made from: width, layers, heads, std (of the initial weights), vocabulary, length.
Shape = Mapping[str, Any]


class PostBlock(GPT2Block):
    """``x <- LN(alpha x + f(x))``: Post-LN for ``alpha = 1``, else DeepNorm as published (arXiv:2203.00555)."""

    alpha = 1.0

    def forward(self, hidden_states: Tensor, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        attended, _ = self.attn(hidden_states, attention_mask=attention_mask)
        hidden_states = self.ln_1(self.alpha * hidden_states + attended)
        return self.ln_2(self.alpha * hidden_states + self.mlp(hidden_states))


class ScaledBlock(GPT2Block):
    """``x <- alpha x + f(LN(x))``: DeepNorm as the figures of the RKSP paper suggest it, with the norm in front."""

    alpha = 1.0

    def forward(self, hidden_states: Tensor, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        attended, _ = self.attn(self.ln_1(hidden_states), attention_mask=attention_mask)
        hidden_states = self.alpha * hidden_states + attended
        return self.alpha * hidden_states + self.mlp(self.ln_2(hidden_states))


class Float(nn.Module):
    """A norm behind a matrix gets float32 under autocast too: vmap has no mixed one."""

    def forward(self, states: Tensor) -> Tensor:
        return states.float()


class DenseExperts(MixtralExperts):
    """Every expert sees every token, with weight 0 where the router sends it elsewhere: the same function, which vmap can batch."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """``(tokens, width)`` to the same."""
        chosen = top_k_index[..., None] == torch.arange(self.num_experts, device=top_k_index.device)
        share = (chosen * top_k_weights[..., None]).sum(1)
        gate, up = (hidden_states @ self.gate_up_proj.mT).chunk(2, dim=-1)
        each = (self.act_fn(gate) * up) @ self.down_proj.mT
        return (each * share.T[..., None]).sum(0).to(hidden_states.dtype)


def gpt2(shape: Shape) -> GPT2LMHeadModel:
    """GPT-2 as transformers initialises it: Pre-LN, output projections scaled by ``1/sqrt(2 layers)``. No dropout."""
    return GPT2LMHeadModel(GPT2Config(**small_gpt2(shape)))


def small_gpt2(shape: Shape) -> dict[str, Any]:
    """Arguments of a configuration of GPT-2 and its kin."""
    return {
        "n_layer": shape["layers"], "n_embd": shape["width"], "n_head": shape["heads"], "vocab_size": shape["vocabulary"],
        "n_positions": shape["length"], "initializer_range": shape["std"], "bos_token_id": 0, "eos_token_id": 0,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False, "attn_implementation": "eager",
        "activation_function": "gelu_pytorch_tanh",  # GPT-2's own, in one kernel
    }  # fmt: skip


def rmsnorm(shape: Shape) -> GPT2LMHeadModel:
    """GPT-2 with RMSNorm in place of LayerNorm."""
    model = gpt2(shape)
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.LayerNorm):
                setattr(parent, name, nn.RMSNorm(module.normalized_shape, eps=1e-5))
    return model


def no_norm(shape: Shape) -> GPT2LMHeadModel:
    """GPT-2 without any normalisation."""
    model = gpt2(shape)
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.LayerNorm):
                setattr(parent, name, nn.Identity())
    return model


def subln(shape: Shape) -> GPT2LMHeadModel:
    """Sub-LN (arXiv:2210.06423): Pre-LN, and a norm in front of both output projections."""
    model = gpt2(shape)
    for block in model.transformer.h:
        width, inner = shape["width"], block.mlp.c_proj.weight.shape[0]
        block.attn.c_proj = nn.Sequential(Float(), nn.LayerNorm(width), block.attn.c_proj)
        block.mlp.c_proj = nn.Sequential(Float(), nn.LayerNorm(inner), block.mlp.c_proj)
    return model


def postln(shape: Shape) -> GPT2LMHeadModel:
    """Post-LN: a norm behind each sum, none at the end."""
    return _with_blocks(gpt2(shape), PostBlock, 1.0)


def deepnorm(shape: Shape) -> GPT2LMHeadModel:
    """DeepNorm: ``alpha = (2 layers)^(1/4)``; value, output and feed-forward weights times ``(8 layers)^(-1/4)``."""
    model = _with_blocks(gpt2(shape), PostBlock, (2 * shape["layers"]) ** 0.25)
    _deepnorm_weights(model, shape)
    return model


def deepnorm_pre(shape: Shape) -> GPT2LMHeadModel:
    """``alpha x + f(LN(x))`` with the constants of DeepNorm."""
    model = _with_blocks(gpt2(shape), ScaledBlock, (2 * shape["layers"]) ** 0.25, final_norm=True)
    _deepnorm_weights(model, shape)
    return model


def llama(shape: Shape) -> LlamaForCausalLM:
    """LLaMA: RMSNorm, rotary positions, SwiGLU."""
    return LlamaForCausalLM(LlamaConfig(intermediate_size=gated(shape), **modern(shape)))


def mixtral(shape: Shape) -> MixtralForCausalLM:
    """Mixtral: as LLaMA, with four experts, of which each token takes two."""
    model = MixtralForCausalLM(
        MixtralConfig(intermediate_size=gated(shape) // 2, num_local_experts=4, num_experts_per_tok=2, **modern(shape))
    )
    for layer in model.model.layers:
        layer.mlp.experts.__class__ = DenseExperts
    return model


def modern(shape: Shape) -> dict[str, Any]:
    """Arguments that the configurations of LLaMA and its kin share."""
    return {
        "num_hidden_layers": shape["layers"], "hidden_size": shape["width"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["heads"], "vocab_size": shape["vocabulary"], "use_cache": False,
        "max_position_embeddings": shape["length"], "initializer_range": shape["std"], "attn_implementation": "eager",
        "pad_token_id": None,
    }  # fmt: skip


def gated(shape: Shape) -> int:
    """Inner width of a gated feed-forward layer with the size of a plain one."""
    return int(8 * shape["width"] // 3 // 8 * 8)


def _with_blocks(model: GPT2LMHeadModel, kind: type[nn.Module], alpha: float, final_norm: bool = False) -> Any:
    for block in model.transformer.h:
        block.__class__ = kind
        block.alpha = alpha
    if not final_norm:
        model.transformer.ln_f = nn.Identity()
    return model


@torch.no_grad()
def _deepnorm_weights(model: GPT2LMHeadModel, shape: Shape) -> None:
    width, beta = shape["width"], (8 * shape["layers"]) ** -0.25
    for block in model.transformer.h:
        for weight in (block.attn.c_proj.weight, block.mlp.c_proj.weight):
            weight.mul_(math.sqrt(2 * shape["layers"]))  # GPT-2's own scale
        for weight in (block.attn.c_attn.weight[:, 2 * width :], block.attn.c_proj.weight, block.mlp.c_fc.weight,
                       block.mlp.c_proj.weight):  # fmt: skip
            weight.mul_(beta)


FAMILIES: dict[str, Callable[[Shape], nn.Module]] = {
    "preln": gpt2,
    "rmsnorm": rmsnorm,
    "subln": subln,
    "postln": postln,
    "deepnorm": deepnorm,
    "deepnorm-pre": deepnorm_pre,
    "none": no_norm,
    "llama": llama,
    "mixtral": mixtral,
}
#: Families that are left out together when the model is checked on families that it was not fitted to.
TWINS = (
    ("preln", "rmsnorm"), ("subln",), ("postln", "deepnorm"), ("deepnorm-pre",), ("none",), ("llama", "mixtral"),
)  # fmt: skip


def make(family: Callable[[Shape], nn.Module], shape: Shape, seed: int) -> nn.Module:
    """The network in evaluation mode, with the weights of ``seed``."""
    torch.manual_seed(seed)
    return family(shape).eval()
