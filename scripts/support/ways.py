"""Ways of calling a forward, the richest first, by the names in its signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from support.batches import extra, target
from support.fused import fused
from support.kinds import IMAGES, VIDEOS, sounds_as

Way = tuple[str, Callable[[Any], dict[str, Any]]]


def ways(names: dict[str, Any], mains: list[str]) -> Iterator[Way]:
    """All that may fit, each a name and a function of an `inputs.Maker`."""
    has = set(names)
    text, pixels = "input_ids" in has, "pixel_values" in has
    sounds = [name for name in ("input_features", "input_values", "audio_values", "audio_mel") if name in has]
    needed = {name for name, parameter in names.items() if parameter.default is parameter.empty}
    if "past_values" in has:
        yield from _series()
    if text and pixels:
        yield from _text_with("pixel_values", IMAGES)
        yield from _text_with("", IMAGES)
    if text and sounds:
        for sound in sounds:
            yield from _text_with(sound, sounds_as(sound))
            yield from _text_with("", sounds_as(sound))
    if text and "pixel_values_videos" in has and not pixels:
        yield from _text_with("pixel_values_videos", VIDEOS)
        yield from _text_with("", VIDEOS)
    if text and not needed - {"input_ids"}:
        yield "text", lambda maker: maker.text() | extra(maker) | target(maker)
        yield "text without padding", lambda maker: maker.text(pad=False) | extra(maker) | target(maker)
    if pixels and not text:
        for name, way in IMAGES.items():
            yield name, lambda maker, way=way: way(maker) | extra(maker) | target(maker)
    if "pixel_values_videos" in has and not text:
        for name, way in VIDEOS.items():
            yield name, lambda maker, way=way: way(maker) | extra(maker)
    for sound in sounds:
        if not text:
            for name, way in sounds_as(sound).items():
                yield name, lambda maker, way=way: way(maker) | extra(maker) | target(maker)
    if "hidden_states" in has:
        yield "patches", lambda maker: dict(zip(("hidden_states", "grid_thw"), maker.patches(), strict=True))
    if "inputs_embeds" in has and not text:
        yield "states", lambda maker: _states(maker)


# --- beside a text ---


def _text_with(main: str, kinds: dict[str, Callable[[Any], dict[str, Any]]]) -> Iterator[Way]:
    for name, way in kinds.items():
        if main:
            yield f"text with {name}", lambda maker, way=way, main=main: fused(maker, way(maker), main)
        else:
            yield (
                f"text beside {name}",
                lambda maker, way=way: maker.text() | way(maker) | extra(maker) | target(maker),
            )


def _states(maker: Any) -> dict[str, Any]:
    width = maker.find("hidden_size", "d_model", default=64)
    made = {"inputs_embeds": maker.normal(8, 19, width)}
    if "attention_mask" in maker.names:
        keep = maker.mask(19)
        maker.padded["inputs_embeds"] = keep
        made["attention_mask"] = keep
    return made


def _series() -> Iterator[Way]:
    def lagged(maker: Any) -> dict[str, Any]:
        config = maker.config
        past = config.context_length + max(config.lags_sequence)
        made = {
            "past_values": maker.normal(8, past),
            "past_time_features": maker.normal(8, past, config.num_time_features),
            "past_observed_mask": torch.ones(8, past),
            "future_values": maker.normal(8, config.prediction_length),
            "future_time_features": maker.normal(8, config.prediction_length, config.num_time_features),
        }
        return made

    def channels(maker: Any) -> dict[str, Any]:
        config = maker.config
        made = {"past_values": maker.normal(8, config.context_length, config.num_input_channels)}
        return made

    yield "series with lags", lagged
    yield "series of channels", channels
    yield "series", lambda maker: {"past_values": maker.normal(8, 64), "freq": torch.zeros(8, 1, dtype=torch.long)}
    yield "series without frequencies", lambda maker: {"past_values": maker.normal(8, 64)}
    yield (
        "series and their padding",
        lambda maker: {
            "past_values": maker.normal(8, 64),
            "past_values_padding": torch.zeros(8, 64, dtype=torch.long),
        },
    )
    yield "list of series", lambda maker: {"past_values": list(maker.normal(8, 64))}
