"""Tiny models of every architecture that the tests capture, built from configurations in code: no Hub, no weights.

`CASES` is the table. A case builds its base model (what ``AutoModel`` gives) or the model with a head, and batches:

    case = CASES["llama"]
    model = case.build()             # float32, eval mode, seeded
    batch = case.batch(sequences=3)  # with right padding where the architecture knows padding
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from hf_rksp.capture import capture_transitions, find_stacks
from hf_rksp.profile.gather import Key, gather_moments
from hf_rksp.spectral import SecondMoments

VOCAB = 48
WIDTH = 16
LAYERS = 3
TOKENS = 9


class Mix(nn.Module):
    """The smallest residual block of one's own, which no class of transformers marks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + torch.tanh(self.inner(hidden_states))


#: What most configurations call their sizes.
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_PLAIN = {name: value for name, value in _SIZES.items() if name != "num_key_value_heads"}
_SSM = {name: _SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id")}
_IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 3}
_VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    **_IMAGE,
}
_BART = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_MAMBA2 = {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4}


@dataclass(frozen=True)
class Case:
    """One architecture.

    Attributes:
        config: class name of the configuration and its arguments.
        stacks: path of each stack in the base model -> number of blocks, in the order of registration.
        head: Auto class of a model with a head, and what its paths have in front; ``None`` if there is none.
        inputs: "text", "image", "text+image", "text>text" (encoder-decoder) or "audio>text".
        embeds: path in the base model of the module that turns the inputs into the first state, where there is one.
        norm: path in the base model of the norm after the last block, where there is one.
    """

    config: tuple[str, Mapping[str, Any]]
    stacks: Mapping[str, int]
    head: tuple[str, str] | None = ("AutoModelForCausalLM", "model.")
    inputs: str = "text"
    embeds: str | None = None
    norm: str | None = None

    def build(self, head: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> nn.Module:
        """The model in evaluation mode; weights larger than at initialisation, so that blocks do something."""
        name, arguments = self.config
        config = getattr(transformers, name)(**{**arguments, **changes})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            auto = getattr(transformers, self.head[0] if head and self.head else "AutoModel")
            # The faster experts know no float64.
            eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
            model = auto.from_config(config, **eager).to(dtype).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim >= 2:
                        parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    def paths(self, head: bool = False) -> dict[str, int]:
        """Path of each stack -> number of its blocks."""
        prefix = self.head[1] if head and self.head else ""
        return {prefix + path: count for path, count in self.stacks.items()}

    def batch(self, sequences: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """A batch; texts have different lengths (the first is the longest) and are padded on the right."""
        return _BATCHES[self.inputs](sequences, torch.Generator().manual_seed(seed), dtype)


def text(sequences: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Token ids and their mask: lengths run down from TOKENS to 4 and around again."""
    ids = torch.randint(3, VOCAB, (sequences, TOKENS), generator=generator)
    lengths = torch.tensor([TOKENS - i % (TOKENS - 3) for i in range(sequences)])
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def _images(sequences: int, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(sequences, 3, 8, 8, generator=generator, dtype=dtype)}


def _pair(sequences: int, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    target = text(sequences + 1, generator)  # one more, without its first: other lengths than the source
    return text(sequences, generator) | {f"decoder_{name}": value[1:] for name, value in target.items()}


def _speech(sequences: int, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    features = torch.randn(sequences, 8, 24, generator=generator, dtype=dtype)
    target = text(sequences, generator)
    return {"input_features": features} | {f"decoder_{name}": value for name, value in target.items()}


_BATCHES = {
    "text": text,
    "image": _images,
    "text+image": lambda n, generator, dtype: text(n, generator) | _images(n, generator, dtype),
    "text>text": _pair,
    "audio>text": _speech,
}


def _decoder(config: str, norm: str = "norm", **arguments: Any) -> Case:
    return Case((config, {**_SIZES, **arguments}), {"layers": LAYERS}, embeds="embed_tokens", norm=norm)


def transitions(model: nn.Module, batch: Mapping[str, Any], **options: Any) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Path of each stack -> the states before and after each of its blocks, from one forward pass."""
    stacks = find_stacks(model, **options)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {stack.path: [] for stack in stacks}
    with torch.no_grad(), capture_transitions(stacks, lambda stack, _, x, y: seen[stack.path].append((x, y))):
        model(**batch)
    return seen


def all_moments(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], groups: int = 1
) -> dict[Key, list[SecondMoments]]:
    """Moments of every layer, without the rest of the profile."""
    stacks = find_stacks(model)
    layers = [(stack.path, block.index) for stack in stacks for block in stack.blocks]
    with torch.no_grad():
        return gather_moments(model, batches, stacks, layers, groups)[0]


def relative_difference(one: SecondMoments, other: SecondMoments) -> float:
    """The largest of the relative differences (Frobenius) of the means and the scatter matrices."""
    assert one.count == other.count
    names = ("mean_x", "mean_y", "cxx", "cyx", "cyy")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return max(float(torch.linalg.norm(a - b) / torch.linalg.norm(b)) for a, b in pairs)


CASES: dict[str, Case] = {
    "gpt2": Case(
        (
            "GPT2Config",
            {
                "vocab_size": VOCAB,
                "n_embd": WIDTH,
                "n_layer": LAYERS,
                "n_head": 2,
                "n_positions": 32,
                "pad_token_id": 0,
            },
        ),
        {"h": LAYERS},
        ("AutoModelForCausalLM", "transformer."),
        norm="ln_f",
    ),
    "gpt_neox": Case(
        ("GPTNeoXConfig", _PLAIN), {"layers": LAYERS}, ("AutoModelForCausalLM", "gpt_neox."), norm="final_layer_norm"
    ),
    "opt": Case(
        ("OPTConfig", {**_PLAIN, "ffn_dim": 32, "word_embed_proj_dim": WIDTH}),
        {"decoder.layers": LAYERS},
        norm="decoder.final_layer_norm",
    ),
    "llama": _decoder("LlamaConfig"),
    "mistral": _decoder("MistralConfig", sliding_window=4),
    "qwen3": _decoder("Qwen3Config", head_dim=8),
    "gemma": _decoder("GemmaConfig", head_dim=8),
    "gemma2": _decoder("Gemma2Config", head_dim=8, sliding_window=4),
    "phi": _decoder("PhiConfig", "final_layernorm"),
    "falcon": Case(
        ("FalconConfig", {**_PLAIN, "ffn_hidden_size": 32}),
        {"h": LAYERS},
        ("AutoModelForCausalLM", "transformer."),
        norm="ln_f",
    ),
    "bloom": Case(
        ("BloomConfig", {"vocab_size": VOCAB, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 2, "pad_token_id": 0}),
        {"h": LAYERS},
        ("AutoModelForCausalLM", "transformer."),
        norm="ln_f",
    ),
    "mixtral": _decoder("MixtralConfig", num_local_experts=4),
    "olmoe": _decoder("OlmoeConfig", num_experts=4, num_experts_per_tok=2),
    "qwen2_moe": _decoder(
        "Qwen2MoeConfig",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    ),
    "qwen3_moe": _decoder("Qwen3MoeConfig", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, head_dim=8),
    "deepseek_v3": _decoder(
        "DeepseekV3Config",
        moe_intermediate_size=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    ),
    "gpt_oss": _decoder("GptOssConfig", head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4),
    "mamba": Case(
        ("MambaConfig", {**_SSM, "state_size": 4}),
        {"layers": LAYERS},
        ("AutoModelForCausalLM", "backbone."),
        embeds="embeddings",
        norm="norm_f",
    ),
    "mamba2": Case(
        ("Mamba2Config", {**_SSM, **_MAMBA2}),
        {"layers": LAYERS},
        ("AutoModelForCausalLM", "backbone."),
        embeds="embeddings",
        norm="norm_f",
    ),
    "falcon_mamba": Case(
        ("FalconMambaConfig", {**_SSM, "state_size": 4}),
        {"layers": LAYERS},
        ("AutoModelForCausalLM", "backbone."),
        embeds="embeddings",
        norm="norm_f",
    ),
    "jamba": _decoder(
        "JambaConfig",
        "final_layernorm",
        num_hidden_layers=LAYERS,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        mamba_d_state=4,
        mamba_d_conv=2,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "zamba2": _decoder(
        "Zamba2Config",
        "final_layernorm",
        layers_block_type=["mamba", "hybrid", "mamba"],
        mamba_d_state=8,
        mamba_ngroups=1,
        n_mamba_heads=4,
        mamba_headdim=8,
        chunk_size=4,
        num_mem_blocks=1,
        adapter_rank=4,
        use_mem_eff_path=False,
    ),
    "bamba": _decoder(
        "BambaConfig",
        "final_layernorm",
        attn_layer_indices=[1],
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=4,
    ),
    "bert": Case(
        ("BertConfig", _PLAIN), {"encoder.layer": LAYERS}, ("AutoModelForMaskedLM", "bert."), embeds="embeddings"
    ),
    "roberta": Case(
        ("RobertaConfig", _PLAIN), {"encoder.layer": LAYERS}, ("AutoModelForMaskedLM", "roberta."), embeds="embeddings"
    ),
    "distilbert": Case(
        (
            "DistilBertConfig",
            {"vocab_size": VOCAB, "dim": WIDTH, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 32, "pad_token_id": 0},
        ),
        {"transformer.layer": LAYERS},
        ("AutoModelForMaskedLM", "distilbert."),
        embeds="embeddings",
    ),
    "vit": Case(
        ("ViTConfig", _VIT),
        {"layers": LAYERS},
        ("AutoModelForImageClassification", "vit."),
        "image",
        embeds="embeddings",
        norm="layernorm",
    ),
    "dinov2": Case(
        ("Dinov2Config", _VIT),
        {"encoder.layer": LAYERS},
        ("AutoModelForImageClassification", "dinov2."),
        "image",
        embeds="embeddings",
        norm="layernorm",
    ),
    "swin": Case(
        (
            "SwinConfig",
            {
                "image_size": 8,
                "patch_size": 2,
                "embed_dim": WIDTH,
                "depths": [2, 2],
                "num_heads": [2, 2],
                "window_size": 2,
            },
        ),
        {"encoder.layers.0.blocks": 2, "encoder.layers.1.blocks": 2},
        ("AutoModelForImageClassification", "swin."),
        "image",
        norm="layernorm",
    ),
    "clip": Case(
        (
            "CLIPConfig",
            {
                "text_config": {**_PLAIN, "num_hidden_layers": 2, "projection_dim": WIDTH},
                "vision_config": {**_VIT, "projection_dim": WIDTH},
                "projection_dim": WIDTH,
            },
        ),
        {"text_model.encoder.layers": 2, "vision_model.encoder.layers": LAYERS},
        None,
        "text+image",
    ),
    "t5": Case(
        (
            "T5Config",
            {
                "vocab_size": VOCAB,
                "d_model": WIDTH,
                "num_layers": 2,
                "num_decoder_layers": LAYERS,
                "num_heads": 2,
                "d_kv": 8,
                "d_ff": 32,
                "pad_token_id": 0,
                "decoder_start_token_id": 0,
            },
        ),
        {"encoder.block": 2, "decoder.block": LAYERS},
        ("AutoModelForSeq2SeqLM", ""),
        "text>text",
        norm="decoder.final_layer_norm",
    ),
    "bart": Case(
        ("BartConfig", {**_BART, "max_position_embeddings": 32}),
        {"encoder.layers": 2, "decoder.layers": LAYERS},
        ("AutoModelForSeq2SeqLM", "model."),
        "text>text",
    ),
    "whisper": Case(
        ("WhisperConfig", {**_BART, "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 32}),
        {"encoder.layers": 2, "decoder.layers": LAYERS},
        ("AutoModelForSpeechSeq2Seq", "model."),
        "audio>text",
        norm="decoder.layer_norm",
    ),
}
