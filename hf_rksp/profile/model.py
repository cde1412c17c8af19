"""A model and its batches -> the spectral profile of every residual-stream transition.

batches -> capture -> second moments, a set for each group of sequences -> whitened DMD -> spectrum
        -> standard errors (jackknife over the groups) -> aggregates
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hf_rksp.capture import (
    Layouts,
    Stack,
    find_stacks,
    unmarked,
    untouched,
)
from hf_rksp.capture.calling import eager, uncompiled
from hf_rksp.capture.identity import model_identity
from hf_rksp.capture.lockstep import BlockWeights
from hf_rksp.config import SpectralConfig
from hf_rksp.errors import DegenerateMomentsError, InputError
from hf_rksp.machine import peak_memory, versions
from hf_rksp.profile.aggregate import aggregate, by_thirds
from hf_rksp.profile.batches import as_mappings
from hf_rksp.profile.gather import Key, States
from hf_rksp.profile.layer import LayerProfile
from hf_rksp.profile.notes import left_out, not_run, warn_of_left_padding
from hf_rksp.profile.outline import outline
from hf_rksp.profile.passes import repeated, streamed
from hf_rksp.profile.resume import Resume, digest
from hf_rksp.profile.share import share_of
from hf_rksp.profile.solve import solve_layers


@dataclass(frozen=True)
class ModelProfile:
    """Everything one profiling run found. `hf_rksp.report` writes it as ``report.json`` and renders it.

    Attributes:
        model: class, size and configuration; ``source`` is "initialised" or "pretrained" if known.
        setup: text, tokens, rank, versions: everything that the numbers depend on.
        layers: one `LayerProfile` per transition, in the order of depth.
        aggregates: quantity -> mean, max, min, std over the informative layers, standard_error and interval of the mean.
        thirds: "early", "middle", "late" -> quantity -> mean over that third of the depth.
        cost: seconds of each phase, peak memory, tokens.
        notes: sentences that a reader of the numbers needs: layers left out, a substitute for the tokenizer.
    """

    model: dict[str, Any]
    setup: dict[str, Any]
    layers: tuple[LayerProfile, ...]
    aggregates: dict[str, dict[str, Any]]
    thirds: dict[str, dict[str, float]]
    cost: dict[str, Any]
    notes: tuple[str, ...] = ()


def profile_model(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any] | Tensor],
    *,
    blocks: str | Sequence[str] | None = None,
    rank: int | Literal["auto", "full"] = "auto",
    groups: int = 8,
    config: SpectralConfig | None = None,
    moment_memory: float | None = None,
    weights: BlockWeights | None = None,
    resume: str | os.PathLike[str] | None = None,
    shared: bool = False,
    source: Literal["initialised", "pretrained"] | None = None,
    model_info: Mapping[str, Any] | None = None,
    setup_info: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    progress: bool = True,
) -> ModelProfile:
    """Profile every residual-stream transition of ``model`` on ``batches``; no gradient, no training step.

    The model is left unchanged: training flags, hooks, gradients, dtypes and random state.

    Args:
        model: a transformers model, one wrapped by PEFT or ``torch.compile``, or any module (with ``blocks``).
        batches: arguments of the model: mappings (with ``attention_mask`` if there is padding) or tensors of
            token ids. The first dimension is the sequence. They are kept in memory and may be passed over several times.
        blocks: path(s) of the list(s) of residual blocks; found automatically in transformers models.
        rank: "full", a whole number r, or "auto": full if there are two tokens per dimension, else as many as the tokens allow.
        groups: groups of sequences for the jackknife. Fewer sequences make fewer groups; with fewer than 4 there are no standard
            errors. 0 switches the jackknife off, which is much faster.
        config: bands and cutoffs.
        moment_memory: memory limit in bytes for the accumulated moments. If all layers need more, they are processed in several
            forward passes. Default: see `default_moment_memory`; with ``weights`` half a GiB.
        weights: for a model larger than memory: loads one block at a time. All batches then pass a block before any of them
            enters the next.
        resume: with ``weights``: folder in which progress is saved after each block. If the profile is interrupted, the same call
            continues with the next block. Call `hf_rksp.profile.resume.discard` when the profile is saved elsewhere.
        shared: the processes of `torch.distributed` work on one profile. Each calls this with the same model and its own share
            of the batches, and each gets the whole profile.
        source: "initialised" or "pretrained", for ``ModelProfile.model``: published thresholds hold for models at initialisation.
        model_info, setup_info, notes: more entries for ``ModelProfile.model``, ``.setup`` and ``.notes``.
        progress: show a progress bar on stderr.

    Raises:
        CaptureError: no residual blocks, or they did not run.
        NonFiniteError: NaN or inf in the states; the message names the first layer.
        DegenerateMomentsError: the states vary in no layer. A single such layer is left out, with a warning.
        TooFewTokensError, InputError: see `hf_rksp.spectral.choose_rank`; nothing to profile.
    """
    config = config or SpectralConfig()
    check_options(rank, groups, moment_memory)
    if source not in (None, "initialised", "pretrained"):
        raise InputError(f"source={source!r}: pass 'initialised', 'pretrained' or None")
    if resume is not None and weights is None:
        raise InputError(f"resume={str(resume)!r} needs weights= (on the command line: --stream); leave it out")
    if moment_memory is None:
        moment_memory = 2**29 if weights else default_moment_memory(model)
    batches = as_mappings(batches, hasattr(uncompiled(model), "config"))
    share = share_of(batches, shared)
    started = time.perf_counter()
    seconds = dict.fromkeys(("forward", "moments", "spectra"), 0.0)
    layers: dict[Key, LayerProfile] = {}
    constant: list[DegenerateMomentsError] = []
    with eager(), untouched(model):
        beside: dict[str, str] = {}
        seen: dict[Key, States]
        if weights:
            stacks, seen = find_stacks(model, blocks), {}
        else:
            stacks, seen = outline(model, batches, blocks, share, beside)
    first = set(seen)
    layouts = Layouts(model, stacks)
    if not weights:
        warn_of_left_padding(model, batches, stacks)
    seconds["forward"] += time.perf_counter() - started
    described = _describe_model(model, stacks, source) | dict(model_info or {})
    kept = Resume(Path(resume) / f"process-{share.rank}" if shared else resume) if resume is not None else None
    with contextlib.closing(kept) if kept else contextlib.nullcontext():
        if kept:
            assert weights is not None
            own = {"weights": weights.identity(), "processes": share.world}
            kept.open(_fingerprint(described, batches, rank, groups, config) | own)
            if any(done != list(kept.layers) for done in share.gather(list(kept.layers))):
                raise InputError(
                    f"resume={str(resume)!r}: its processes were stopped at different blocks; delete it to begin anew"
                )
            layers = kept.layers
            for name, value in kept.seconds.items():
                seconds[name] += value
        earlier = sum(kept.seconds.values()) if kept else 0.0
        count = len(seen) or sum(len(stack.blocks) for stack in stacks)
        parts = (
            streamed(model, batches, stacks, groups, moment_memory, weights, seconds, kept, share, layouts)
            if weights
            else repeated(
                model, batches, stacks, seen, groups, moment_memory, seconds, share, layouts, blocks is not None
            )
        )
        if seen:
            _check_rank(rank, [states.width for states in seen.values()])
        hidden = not progress or share.rank > 0
        bar = tqdm(total=count, initial=len(layers), desc="profiling", unit="layer", disable=hidden, leave=False)
        with bar, contextlib.closing(parts):  # a pass that is left half way holds hooks and threads
            for moments in parts:
                _check_rank(rank, [found.dim for found in moments.values()])
                solving = time.perf_counter()
                for key, layer in solve_layers(stacks, moments, rank, groups > 0, config, share, _depths(stacks, seen)):
                    if isinstance(layer, LayerProfile):
                        layers[key] = layer
                    else:
                        constant.append(layer)
                    bar.update()
                seconds["spectra"] += time.perf_counter() - solving
                if kept:
                    kept.save(seconds, share)
    late = [key for key in layers if key not in first] if not weights else []
    if late:  # layers that only some batches reach stand where they belong, not where they turned up
        places = {stack.path: place for place, stack in enumerate(stacks)}
        layers = {key: layers[key] for key in sorted(layers, key=lambda key: (places[key[0]], key[1]))}
    ordered = tuple(layer for (path, _), layer in layers.items() if path not in layouts.unread)
    if constant and (not layers or kept):
        raise constant[0]
    found = left_out(stacks, layouts) + [f"A layer is left out: {error}" for error in constant] + list(beside.values())
    if weights and blocks is None:
        found += [not_run(path) for path in unmarked(model)]
    for note in found:
        warnings.warn(note, stacklevel=2)
    aggregates = aggregate(ordered)
    return ModelProfile(
        model=described,
        setup={
            "rank": rank,
            "groups": groups,
            "groups_used": max((len(next(iter(layer.replicates.values()), [])) for layer in ordered), default=0),
            "layers_with_float32_replicates": sum(layer.replicate_dtype == "float32" for layer in ordered),
            "spectral_config": asdict(config),
            "versions": versions(),
        }
        | dict(setup_info or {}),
        layers=ordered,
        aggregates=aggregates,
        thirds=by_thirds(ordered),
        cost={
            "seconds": seconds | {"profile": time.perf_counter() - started + earlier},
            "peak_memory_bytes": max(share.gather(peak_memory())),
            "moment_memory_bytes": moment_memory,
            "threads": torch.get_num_threads(),
            "processes": share.world,
        },
        notes=(*notes, *found),
    )


def _depths(stacks: Sequence[Stack], seen: Sequence[Key] | Mapping[Key, Any]) -> dict[Key, tuple[int, int]]:
    """Where one module is several layers: the place of each among the layers of its stack, and their number."""
    depths: dict[Key, tuple[int, int]] = {}
    for stack in stacks:
        own = [key for key in seen if key[0] == stack.path]
        if any(index >= stack.members for _, index in own):
            depths |= {key: (place, len(own)) for place, key in enumerate(own)}
    return depths


def _fingerprint(
    model: Mapping[str, Any], batches: Sequence[Mapping[str, Any]], rank: object, groups: int, config: SpectralConfig
) -> dict[str, Any]:
    """All that the layers of a profile depend on."""
    return {
        "model": dict(model),
        "batches": digest(batches),
        "rank": rank,
        "groups": groups,
        "spectral_config": asdict(config),
        "versions": versions(),
    }


def check_options(rank: object, groups: object, moment_memory: float | None = None) -> None:
    """Refuse a rank, a number of groups or of bytes that no model could meet.

    Raises:
        InputError: names the argument and what it may be.
    """
    whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    if not whole and rank not in ("auto", "full"):
        raise InputError(f"rank={rank!r}: pass 'auto', 'full' or a whole number of at least 1")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 0 or groups == 1:
        raise InputError(f"groups={groups!r}: pass a whole number of at least 2, or 0 for no standard errors")
    if moment_memory is not None and not moment_memory > 0:
        raise InputError(f"moment_memory={moment_memory!r}: pass a number above zero")


def default_moment_memory(model: nn.Module) -> float:
    """Bytes: half of what the weights in main memory take, at least half a GiB.

    Weights on disk need no memory, and an accelerator is filled by its model more often than main memory is.
    """
    return max(2**29, sum(weight.nbytes for weight in model.parameters() if weight.device.type == "cpu") / 2)


def _check_rank(rank: int | str, widths: Iterable[int]) -> None:
    narrowest = min(widths)
    if isinstance(rank, int) and rank > narrowest:
        raise InputError(f"rank={rank}: the states have {narrowest} dimensions; pass {narrowest} or less, or 'auto'")


def _describe_model(model: nn.Module, stacks: Sequence[Stack], source: str | None) -> dict[str, Any]:
    module = uncompiled(model)
    config = getattr(module, "config", None)
    first = next(module.parameters(), torch.empty(0))
    described = model_identity(module) | {
        "source": source,
        "dtype": str(first.dtype).removeprefix("torch."),
        "device": str(first.device),
        "stacks": [{"path": stack.path, "blocks": len(stack.blocks)} for stack in stacks],
    }
    if config is not None and hasattr(config, "to_diff_dict"):
        described["config"] = config.to_diff_dict()
    return described
