"""Published configurations by name, for `--init` without a network.

Only what differs between sizes or from the library's defaults is written out, so that a change of a default
in transformers cannot change a preset: every value that fixes the architecture is here.
"""

from __future__ import annotations

from typing import Any


def _gpt2(layers: int, heads: int, width: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "vocab_size": 50257,
        "n_positions": 1024,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
    }


def _llama(layers: int, heads: int, kv_heads: int, width: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": width,
        "intermediate_size": inner,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
    } | more


def _mamba(layers: int, width: int) -> dict[str, Any]:
    return {
        "model_type": "mamba",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "vocab_size": 50280,
        "state_size": 16,
    }


def _mamba2(layers: int, width: int) -> dict[str, Any]:
    heads = {"expand": 2, "head_dim": 64, "num_heads": 2 * width // 64, "n_groups": 1}
    return _mamba(layers, width) | {"model_type": "mamba2", "vocab_size": 50288, "state_size": 128} | heads


def _ladder(layers: int, heads: int, width: int, inner: int) -> dict[str, Any]:
    """LLaMA-2's shape, smaller: the paper gives no sizes for its ladder, the names count the head."""
    return _llama(layers, heads, heads, width, inner, vocab_size=32000, max_position_embeddings=4096)


def _moe(layers: int, heads: int, width: int, inner: int) -> dict[str, Any]:
    """Mixtral's blocks, 8 experts; --config-overrides num_experts_per_tok=K sets how many are active per token."""
    return _ladder(layers, heads, width, inner) | {
        "model_type": "mixtral",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    }


def _vit(model_type: str, heads: int, width: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": 12,
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
    }


#: name -> arguments of the configuration, ``model_type`` among them.
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "llama-2-7b": _llama(32, 32, 32, 4096, 11008, vocab_size=32000, max_position_embeddings=4096),
    "llama-2-13b": _llama(40, 40, 40, 5120, 13824, vocab_size=32000, max_position_embeddings=4096),
    "llama-25m": _ladder(10, 4, 256, 704),
    "llama-85m": _ladder(16, 8, 512, 1408),
    "llama-125m": _ladder(16, 10, 640, 1728),
    "llama-350m": _ladder(22, 16, 1024, 2752),
    "llama-1b": _ladder(18, 16, 2048, 5504),
    "tinyllama-1.1b": _llama(22, 32, 4, 2048, 5632, vocab_size=32000, max_position_embeddings=2048),
    "mistral-7b": _llama(32, 32, 8, 4096, 14336, vocab_size=32000, max_position_embeddings=32768)
    | {"model_type": "mistral", "sliding_window": 4096},
    "mixtral-8x7b": _llama(32, 32, 8, 4096, 14336, vocab_size=32000, max_position_embeddings=32768)
    | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
    "olmoe-1b-7b": _llama(16, 16, 16, 2048, 1024, vocab_size=50304, max_position_embeddings=4096)
    | {"model_type": "olmoe", "num_experts": 64, "num_experts_per_tok": 8},
    "moe-small": _moe(6, 8, 256, 704),
    "moe-medium": _moe(12, 8, 512, 1408),
    "mamba-d256": _mamba(8, 256),
    "mamba-130m": _mamba(24, 768),
    "mamba-370m": _mamba(48, 1024),
    "mamba-790m": _mamba(48, 1536),
    "mamba-1.4b": _mamba(48, 2048),
    "mamba-2.8b": _mamba(64, 2560),
    "mamba2-130m": _mamba2(24, 768),
    "mamba2-370m": _mamba2(48, 1024),
    "mamba2-780m": _mamba2(48, 1536),
    "mamba2-1.3b": _mamba2(48, 2048),
    "mamba2-2.7b": _mamba2(64, 2560),
    "gpt2-kan": _gpt2(6, 4, 256)
    | {"model_type": "gpt2_kan", "n_inner": 256, "spline_intervals": 5, "spline_reach": 3.0, "spline_order": 4},
    "vit-tiny": _vit("vit", 3, 192),
    "vit-tiny-rmsnorm": _vit("vit_rmsnorm", 3, 192),
    "vit-base": _vit("vit", 12, 768),
    "bert-base": {
        "model_type": "bert",
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "initializer_range": 0.02,
    },
}
