"""Inputs of models that no general way fits: texts, series, states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from transformers.models.blt.modeling_blt import _prepare_patch_cross_attention_mask
from transformers.models.esmfold2.modeling_esmfold2 import EsmFold2AtomInputs
from transformers.models.esmfold2.protein_utils import prepare_protein_features

Batch = dict[str, Any]


def _decision(maker: Any) -> Batch:
    config = maker.config
    return {
        "states": maker.normal(8, 9, config.state_dim),
        "actions": maker.normal(8, 9, config.act_dim),
        "rewards": maker.normal(8, 9, 1),
        "returns_to_go": maker.normal(8, 9, 1),
        "timesteps": torch.arange(9).repeat(8, 1),
        "attention_mask": torch.ones(8, 9, dtype=torch.long),
    }


def _states(name: str = "hidden_states", length: int = 19) -> Callable[[Any], Batch]:
    return lambda maker: {name: maker.normal(8, length, maker.find("hidden_size", "d_model", default=64))}


def _perceiver(maker: Any) -> Batch:
    return {"inputs": maker.normal(8, 19, maker.config.d_model)}


def _rag(maker: Any) -> Batch:
    documents = maker.config.n_docs
    context = torch.randint(3, 200, (8 * documents, 17), generator=maker.generator)
    return {
        "input_ids": maker.ids(11, 200),
        "context_input_ids": context,
        "context_attention_mask": torch.ones_like(context),
        "doc_scores": maker.normal(8, documents),
        "decoder_input_ids": torch.randint(3, 200, (8, 13), generator=maker.generator),
    }


def _blt(maker: Any) -> Batch:
    return maker.text() | {"use_cache": False}


def _blt_patches(maker: Any, global_width: bool) -> tuple[Batch, int]:
    """Bytes in patches of one to four, and what the whole model makes of them for its two local parts."""
    length, most = 20, 12
    cuts = torch.rand(8, length, generator=maker.generator).argsort(1) < most - 1
    cuts[:, 0] = False
    patches = cuts.long().cumsum(1)
    mask = _prepare_patch_cross_attention_mask(
        patches, most, length, patches_as_queries=not global_width, cross_attn_k=maker.config.cross_attn_k
    )
    return {"encoder_attention_mask": mask} | (
        {} if global_width else {"num_patches": most, "patch_ids": patches}
    ), most


def _blt_encoder(maker: Any) -> Batch:
    return {"input_ids": maker.ids(20)} | _blt_patches(maker, False)[0]


def _blt_decoder(maker: Any) -> Batch:
    made, patches = _blt_patches(maker, True)
    return {
        "inputs_embeds": maker.normal(8, 20, maker.config.hidden_size),
        "patch_embeds": maker.normal(8, patches, maker.config.hidden_size_global),
    } | made


def _blip_qformer(maker: Any) -> Batch:
    return {
        "query_embeds": maker.normal(8, 9, maker.config.hidden_size),
        "encoder_hidden_states": maker.normal(8, 17, maker.config.encoder_hidden_size),
    }


def _instruct_qformer(maker: Any) -> Batch:
    text = maker.text()
    return text | {
        "query_embeds": maker.normal(8, 9, maker.config.hidden_size),
        "attention_mask": torch.cat([torch.ones(8, 9, dtype=torch.long), text["attention_mask"]], 1),
        "encoder_hidden_states": maker.normal(8, 17, maker.config.encoder_hidden_size),
    }


def _marks(maker: Any) -> Batch:
    """A prompt with three questions: where each ends, how many answers it has, and of which type it is."""
    return {
        "input_ids": maker.ids(100)[:1],
        "marks": torch.tensor([[30, 60, 99]]),
        "num_options": torch.tensor([[2, 4, 3]]),
        "question_type_ids": torch.tensor([[0, 1, 2]]),
    }


def _assistant(maker: Any) -> Batch:
    """States of the model that is assisted, and the keys and values of its last layers."""
    config = maker.config.text_config
    keys = {}
    for i, kind in enumerate(config.layer_types):
        layer = config.per_layer_config[i]
        shape = (8, layer.num_key_value_heads, 21, layer.head_dim)
        keys[kind] = (maker.normal(*shape), maker.normal(*shape))
    return {
        "inputs_embeds": maker.normal(8, 21, 2 * maker.config.backbone_hidden_size),
        "position_ids": torch.arange(21)[None].repeat(8, 1),
        "shared_kv_states": keys,
    }


def _proteins(maker: Any) -> Batch:
    """Proteins of the same residues in other orders, so that all have as many atoms."""
    residues = "MKTAYIAKQRQISFVKSHFS"
    orders = torch.rand(8, len(residues), generator=maker.generator).argsort(1)
    made = [prepare_protein_features("".join(residues[i] for i in order)) for order in orders]
    whole = {name: torch.cat([one[name] for one in made]) for name in made[0]}
    atoms = EsmFold2AtomInputs(**{field.name: whole[field.name] for field in dataclasses.fields(EsmFold2AtomInputs)})
    return {name: value for name, value in whole.items() if name in maker.names} | {"atom_inputs": atoms}


def _delayed_text(maker: Any) -> Batch:
    """A text, and how long the model waits for the sound: the states of that number."""
    return maker.text() | {"t_cond": maker.normal(1, maker.config.hidden_size)}


def _with_encoder(maker: Any) -> Batch:
    width = maker.config.hidden_size
    return maker.text() | {
        "encoder_hidden_states": maker.normal(8, 11, width),
        "encoder_attention_mask": torch.ones(8, 11),
    }


def _forecast(maker: Any) -> Batch:
    return {
        "past_values": maker.normal(8, 64),
        "past_values_padding": torch.zeros(8, 64, dtype=torch.long),
        "freq": torch.zeros(8, 1, dtype=torch.long),
    }


TEXTS: dict[str, Callable[[Any], Batch]] = {
    "blip_2_qformer": _blip_qformer,
    "blt": _blt,
    "blt_global_transformer": _states("inputs_embeds"),
    "blt_local_decoder": _blt_decoder,
    "blt_local_encoder": _blt_encoder,
    "canine": lambda maker: maker.text(length=60),
    "decision_transformer": _decision,
    "esmfold2": _proteins,
    "flava_multimodal_model": _states(),
    "funnel": lambda maker: maker.text(length=60),
    "gemma4_unified_assistant": _assistant,
    "instructblip_qformer": _instruct_qformer,
    "instructblipvideo_qformer": _instruct_qformer,
    "jev": _marks,
    "perceiver": _perceiver,
    "qwen3_omni_moe_talker_code_predictor": _states("inputs_embeds", 2),
    "qwen3_omni_moe_talker_text": _states("inputs_embeds"),
    "rag": _rag,
    "reformer": lambda maker: maker.text(length=24),
    "t5gemma2_decoder": _with_encoder,
    "timesfm": _forecast,
    "voxtral_realtime_text": _delayed_text,
}
