"""A tiny configuration of any model type: the default one with every size shrunk, by what its fields are called.

`tiny_config("llama")` reads the fields of the default configuration, shrinks each by the first rule of `_RULES` that its
name meets, does the same in the configurations inside it, and builds the class anew with what came out. Types that
these rules do not fit have their own values in `overrides.OVERRIDES`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from support.overrides import OVERRIDES

WIDTH = 64
HEADS = 4
HEAD_DIM = 16
LAYERS = 3
VOCAB = 320
POSITIONS = 128
IMAGE = 32
PATCH = 8


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The configuration of ``model_type`` at a size that runs in moments."""
    return Shrinker().shrunk(CONFIG_MAPPING[model_type])


class Shrinker:
    """One configuration with all that lies inside it: a name of a token has one number in all of them."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def shrunk(
        self, kind: type[PreTrainedConfig], default: PreTrainedConfig | None = None, changes: Mapping[str, Any] = {}
    ) -> PreTrainedConfig:
        """A small one of class ``kind``; ``default`` is the one to start from, ``changes`` are not shrunk."""
        own = dict(OVERRIDES.get(kind.model_type, {})) | dict(changes)
        default = default or _default(kind, own)
        outputs = getattr(default, "out_indices", None) or ()
        if (
            len(outputs) > LAYERS
            and "depths" not in vars(default)
            and isinstance(vars(default).get("num_hidden_layers"), int)
        ):
            own.setdefault("num_hidden_layers", len(outputs))
        layers = _layers(default, own)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(kind):
            name = field.name
            # Not by getattr: it is refused for what differs from layer to layer.
            if name in _BASE or not field.init or name not in vars(default):
                continue
            value = vars(default)[name]
            if isinstance(value, PreTrainedConfig):
                changed = own.pop(name, {})
                values[name] = self.shrunk(type(value), value, changed) if isinstance(changed, dict) else changed
            elif isinstance(value, dict) and "rope" in name:
                values[name] = value
            elif value is None and name in _MISSING:
                values[name] = _MISSING[name]
            elif not _derived(field) or _per_layer(value, default):
                values[name] = self._small(name, value, default, layers)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"):
            if isinstance(vars(default).get(name), (int, list)):
                values[name] = self._small(name, vars(default)[name], default, layers)
        indices = getattr(default, "out_indices", None)
        if isinstance(indices, (list, tuple)) and "out_features" not in own:
            values = {
                name: value
                for name, value in values.items()
                if "out_features" not in name and "out_indices" not in name
            }
            values["out_indices"] = _spread(len(indices), *_stages(default, layers))
        _rope(values, default)
        values |= own
        return kind(**{name: value() if callable(value) else value for name, value in values.items()})

    def _small(self, name: str, value: Any, default: PreTrainedConfig, layers: int) -> Any:
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int):
            if _TOKEN.search(name):
                return self._token(name, value)
            if name == "num_key_value_heads" and value == vars(default).get("num_attention_heads"):
                return min(value, HEADS)
            if "window" in name and name != "num_windows" and "depths" in vars(default):
                return min(value, 2)
            if name in ("image_size", "img_size") and "depths" in vars(default):
                return 4 * IMAGE  # the last stage has 32 times less a side
            if name == "head_dim" and "qk_rope_head_dim" in vars(default):  # that of the rotary part, or of the whole
                return 8 if value == vars(default)["qk_rope_head_dim"] else HEAD_DIM
            if name == "window_size" and "spatial_merge_size" in vars(default):
                return min(value, IMAGE)
            return next((rule(value) for pattern, rule in _RULES if pattern.search(name)), value)
        if isinstance(value, (list, tuple)) and value:
            return self._small_list(name, list(value), default, layers)
        return value

    def _small_list(self, name: str, value: list[Any], default: PreTrainedConfig, layers: int) -> list[Any]:
        whole = all(isinstance(item, int) and not isinstance(item, bool) for item in value)
        if _TOKEN.search(name):
            return [self._token(f"{name}.{i}", item) for i, item in enumerate(value)]
        if _INDICES.search(name) and whole:
            return _spread(len(value), layers, 0)
        if _per_layer(value, default):
            return _cut(value, layers, lambda item: self._small(name, item, default, layers))
        if name in ("depths", "depth", "blocks_per_stage", "stage_num_blocks", "num_block_repeats") and whole:
            return [min(item, 2) for item in value]
        if re.search("heads", name) and whole:
            return [max(1, item // value[0]) for item in value]
        if re.search("hidden_sizes|embed_dims?$|embed_dim_per_stage", name) and whole:
            return [max(8, 16 * item // value[0] // 8 * 8) for item in value]
        if name == "patch_size" and "depths" not in vars(default) and whole:
            return [min(item, PATCH) for item in value]
        if re.search("image_size", name):
            return [4 * IMAGE if "depths" in vars(default) else IMAGE] * len(value)
        if re.search("^conv_dim$|tdnn_dim", name) and whole:
            return [32] * len(value)
        return value

    def _token(self, name: str, value: int) -> int:
        if value < VOCAB - 64:
            return value
        name = name.replace("_index", "_id")
        return self._ids.setdefault(name, VOCAB - 1 - len(self._ids))


_BASE = {field.name for field in dataclasses.fields(PreTrainedConfig)} - {"tie_word_embeddings"}
_TOKEN = re.compile(
    r"(token|image|audio|video|patch|bos|eos|pad|sep|cls|mask|unk|start|end|newline)_(id|index|ids)$|_token_id"
)
_INDICES = re.compile(
    r"feature_layer|indices|indexes|_idxs|layer_ids|cross_attention_layers|out_indices|hook_ids|extract_layers|_target_layers"
)
#: What a default configuration lacks, where the model needs it.
_MISSING = {"head_dim": HEAD_DIM, "num_key_value_heads": HEADS, "num_experts_per_tok": 2}
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth", "encoder_layers", "layers", "num_blocks")


def _at_most(limit: int) -> Callable[[int], int]:
    return lambda value: min(value, limit)


#: Name of a field -> its small value; the first that is met counts.
_RULES: list[tuple[re.Pattern[str], Callable[[int], int]]] = [
    (re.compile(pattern), rule)
    for pattern, rule in (
        ("n_group$|topk_group|expert_group", _at_most(1)),
        ("vocab_size|vocab$|^num_embeds$", _at_most(VOCAB)),
        ("num_(key_value|kv)_heads|key_value_heads|key_value_attention_heads", _at_most(2)),
        (r"head_dim_proportion|head_ratio", lambda value: value),
        ("rotary_dim", _at_most(8)),
        ("qk_rope_head_dim|qk_nope_head_dim", _at_most(8)),
        ("mamba_d_head|mamba_headdim|mamba_head_dim", _at_most(16)),
        ("mamba_n_heads|n_mamba_heads|mamba_num_heads", _at_most(8)),
        ("linear_num_key_heads", _at_most(2)),
        (
            "head_dim|headdim|^d_kv$|^d_head$|kv_channels|head_size|dim_head|attention_head_dim|linear_(key|value)",
            _at_most(HEAD_DIM),
        ),
        ("heads?$|_heads_", _at_most(HEADS)),
        (
            "num_attention_layers|num_global_layers|num_coda|layer_index|layers_per|every_n|_layer_(start|end)",
            _at_most(2),
        ),
        ("first_k_dense|num_dense_layers|moe_layer_start|num_(first|last)_full|num_kv_shared", _at_most(1)),
        ("layers$|^n_layer$|^depth$|num_blocks|_depth$|hidden_groups|_num_layers$", _at_most(LAYERS)),
        ("per_layer_input$|_rank$|lora|rank$", _at_most(16)),
        ("moe_intermediate|expert.*intermediate|expert_(ffn|dim)|share_expert_dim", _at_most(32)),
        (
            "intermediate|ffn_dim|feedforward|feed_forward|^d_ff$|^dff$|dim_ff|ff_dim|mlp_dim|d_inner|linear_units|ffn_hidden|"
            "inner_dim|mlp_hidden",
            _at_most(WIDTH),
        ),
        ("experts_per_tok|top_?k|moe_k$", _at_most(2)),
        ("experts?$|moe_num_experts", _at_most(4)),
        (
            "hidden_size|d_model|embed_dim|n_embd|^dim$|hidden_dim|embedding_size|emb_dim|emb_size|embedding_dim|embed_size|"
            "upsample_groups|input_size|width|proj.*(dim|size)|output_dim|out_dim|in_dim|query_dim|_proj_size|descriptor_dim|mask_dim|feature_size|"
            "output_size|output_channels$|d_latents|lru_width|encoder_size|_dim$",
            _at_most(WIDTH),
        ),
        ("num_position_embeddings|position_embedding_size", lambda value: (IMAGE // PATCH) ** 2),
        (
            "position_embeddings|n_positions|max_.*positions|n_ctx|max_seq_len|model_max_length|max_pos_emb",
            _at_most(POSITIONS),
        ),
        ("image_size|img_size|^resolution$", lambda value: IMAGE),
        ("temporal_patch_size|merge", lambda value: value),
        ("patch_size|encoder_stride", _at_most(PATCH)),
        ("num_windows|window_block|^n_window", lambda value: value),
        ("window|context_size|local_attention|attention_chunk_size|attention_chunk", _at_most(8)),
        ("state_size|d_state|state_dim", _at_most(8)),
        ("^chunk_size$|mamba_chunk_size|lsh_attn_chunk|local_attn_chunk|block_size", _at_most(8)),
        ("time_step_rank|dt_rank", _at_most(4)),
        ("codebook_size|num_embeddings|codevector|num_centroids|buckets?$", _at_most(64)),
        (
            "num_queries|num_query_tokens|num_denoising|num_proposals|num_detection_tokens|num_latents|n_latents",
            _at_most(16),
        ),
        ("base_channels", _at_most(32)),
        ("num_filters|n_filters", _at_most(8)),
        ("mm_tokens_per_image", _at_most(4)),
        ("num_pos_feats", _at_most(WIDTH // 2)),
        ("rope_pairs", _at_most(2)),
        ("num_points$", lambda value: value if value < 100 else 16),
    )
]


def _default(kind: type[PreTrainedConfig], own: Mapping[str, Any]) -> PreTrainedConfig:
    try:
        return kind()
    except Exception:
        return kind(**{name: value() if callable(value) else value for name, value in own.items()})


def _derived(field: dataclasses.Field) -> bool:
    """Whether the class itself finds the value, where it is not given."""
    return field.default is None and field.default_factory is dataclasses.MISSING


def _count(config: PreTrainedConfig) -> int:
    """Layers of the default configuration; 0 where it names none."""
    if isinstance(vars(config).get("depths"), (list, tuple)):
        return 0
    values = (vars(config).get(name) for name in _LAYERS)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), 0)


def _layers(default: PreTrainedConfig, own: Mapping[str, Any]) -> int:
    given = next((own[name] for name in _LAYERS if isinstance(own.get(name), int)), None)
    return given or min(_count(default), LAYERS) or LAYERS


def _stages(default: PreTrainedConfig, layers: int) -> tuple[int, int]:
    """Number of outputs a backbone can give, and the first that is not its stem."""
    names = list(getattr(default, "stage_names", None) or ())
    first = int(names[:1] == ["stem"])
    plain = len(names) == _count(default) + first
    return (layers + first if plain else len(names)), first


def _per_layer(value: Any, default: PreTrainedConfig) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > LAYERS and len(value) == _count(default)


def _cut(value: list[Any], layers: int, small: Callable[[Any], Any]) -> list[Any]:
    """The first ``layers`` items, with the kinds that came later in place of the last ones."""
    kept = [small(item) for item in value[:layers]]
    missing = [item for item in dict.fromkeys(map(_hashable, value)) if item not in map(_hashable, value[:layers])]
    if all(isinstance(item, str) for item in value):
        for place, item in zip(range(layers - 1, 0, -1), missing, strict=False):
            kept[place] = item
    return kept


def _hashable(item: Any) -> Any:
    return tuple(item) if isinstance(item, list) else item


def _spread(count: int, layers: int, first: int) -> list[int]:
    """``count`` indices or fewer, from ``first`` to below ``layers``, the last among them."""
    count = min(count, layers - first)
    return sorted({layers - 1 - (i * (layers - first)) // count for i in range(count)}) if count else []


def _rope(values: dict[str, Any], default: PreTrainedConfig) -> None:
    """Rotary settings that fit the small heads: no tables for each frequency, sections that add up."""
    rope = values.get("rope_parameters", getattr(default, "rope_parameters", None))
    if not isinstance(rope, dict):
        return
    head = values.get("head_dim")
    if not isinstance(head, int):
        heads = values.get("num_attention_heads")
        head = values.get("hidden_size", WIDTH) // heads if isinstance(heads, int) and heads else HEAD_DIM
    small = _small_rope(rope, head)
    known = getattr(default, "ignore_keys_at_rope_validation", None) or ()
    if "mrope_section" in known and not any(isinstance(value, dict) for value in small.values()):
        # What a model takes where this is missing is made for large heads.
        small.setdefault("mrope_section", _sections(int(head * small.get("partial_rotary_factor", 1.0)) // 2, 3))
    values["rope_parameters"] = small


def _sections(half: int, count: int) -> list[int]:
    part = half // count
    return [half - part * (count - 1)] + [part] * (count - 1)


def _small_rope(rope: Mapping[str, Any], head: int) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, Mapping):
            small[name] = _small_rope(value, head)
        elif value is None:
            small[name] = None
        elif isinstance(value, (bool, int, float)):
            small[name] = value
        elif name == "rope_type":
            small[name] = value if value in ("default", "proportional") else "default"
        elif name == "mrope_section" and value:
            small[name] = _sections(int(head * rope.get("partial_rotary_factor", 1.0)) // 2, len(value))
    return small
