"""Inputs of models that no general way fits: texts, series, states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
    ids = maker.ids()
    marks = torch.zeros_like(ids)
    marks[:, 3::4] = 1
    return {
        "input_ids": ids,
        "marks": marks,
        "num_options": torch.full((8,), 2),
        "question_type_ids": torch.zeros(8, dtype=torch.long),
    }


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
    "canine": lambda maker: maker.text(length=60),
    "decision_transformer": _decision,
    "flava_multimodal_model": _states(),
    "funnel": lambda maker: maker.text(length=60),
    "instructblip_qformer": _instruct_qformer,
    "instructblipvideo_qformer": _instruct_qformer,
    "jev": _marks,
    "perceiver": _perceiver,
    "qwen3_omni_moe_talker_code_predictor": _states("inputs_embeds", 2),
    "qwen3_omni_moe_talker_text": _states("inputs_embeds"),
    "rag": _rag,
    "t5gemma2_decoder": _with_encoder,
    "timesfm": _forecast,
}
