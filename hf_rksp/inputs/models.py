"""Load the model that is to be audited: a checkpoint (Hub id, folder, GGUF, PEFT adapter) or random weights of a config.

What can be seen to be wrong on disk is refused before anything is read: a missing shard, a half-written file, an
adapter without its base. Weights that a checkpoint lacks are refused too, because transformers would fill them with
random numbers and the report would describe those.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_rksp.capture.lockstep import BlockWeights
from hf_rksp.errors import InputError, ModelLoadError, RkspError, cause_of
from hf_rksp.inputs.adapters import load_adapter
from hf_rksp.inputs.checkpoints import as_transformers_wants, check_folder, check_gguf, is_adapter, local_folder
from hf_rksp.inputs.configs import config_place, load_config
from hf_rksp.inputs.fit import left_out, mismatched_keys, refuse_missing
from hf_rksp.inputs.heads import auto_class, drawn
from hf_rksp.inputs.hub import hint, hub_or_cache
from hf_rksp.inputs.initialise import Initialiser, skeleton
from hf_rksp.inputs.presets import PRESETS
from hf_rksp.inputs.source import DTYPES, ModelSource
from hf_rksp.inputs.streamed import ReadFromDisk, check_streams, on_disk, weight_files
from hf_rksp.machine import available_memory


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be profiled, and what to say of it in the report.

    Attributes:
        model: in evaluation mode.
        processor_source: folder or id that its image processor may come from.
        info: for the report.
        weights: puts the blocks in place one at a time, for a model that is streamed.
        notes: what a reader of the profile has to know, such as weights that were left out.
    """

    model: nn.Module
    processor_source: str | None
    info: dict[str, Any]
    weights: BlockWeights | None = None
    notes: tuple[str, ...] = ()


def load_model(source: ModelSource) -> LoadedModel:
    """Load what ``source`` says, in evaluation mode.

    Raises:
        ModelLoadError: the checkpoint or configuration is missing, broken or incomplete; the message names the file.
        InputError: an override names no key of the configuration.
    """
    import hf_rksp.architectures  # noqa: F401 - registers them

    _check_device(source.device)
    if source.init is not None:
        return _initialise(source)
    assert source.model is not None
    folder = local_folder(source.model)
    if folder is not None and source.revision is not None:
        raise InputError(
            f"revision={source.revision!r} is of a Hub repository, and {source.model!r} is on this disk: leave one out"
        )
    if source.base_model is not None and not is_adapter(folder):
        raise InputError(
            f"base_model={source.base_model!r} is for a PEFT adapter, and {source.model!r} is no local adapter: leave it out"
        )
    if folder is not None and is_adapter(folder):
        check_folder(folder)
        model, info, base, notes = load_adapter(source, folder)
        return LoadedModel(_place(model, source), base, info, notes=tuple(notes))
    return _from_pretrained(source, folder)


def _initialise(source: ModelSource) -> LoadedModel:
    assert source.init is not None
    config = load_config(source)
    config.update(source.head_options)
    dtype = DTYPES.get(source.dtype, torch.float32)
    try:
        double = dtype == torch.float64
        bare = skeleton(config, torch.float32 if double else dtype, source.trust_remote_code, source.head)
        initialiser = Initialiser(bare, source.seed, double)
        _check_memory(bare.model, dtype, source)
        if source.stream:
            check_streams(initialiser.blocks, source)
            initialiser.make_rest()
            model = initialiser.model.eval()
        else:
            model = initialiser.make_all()
    except ModelLoadError as error:
        raise ModelLoadError(f"init={source.init!r}: {error}") from None
    except RkspError:
        raise
    except Exception as error:
        raise ModelLoadError(f"init={source.init!r}: the model cannot be built: {cause_of(error)}") from error
    model = _place(model, source)
    info = {
        "name": source.name,
        "source": "initialised",
        "init": source.init,
        "config_overrides": source.config_overrides,
        "initialisation": {
            "seed": source.seed,
            "scheme": "transformers' own for this architecture, each block with a seed of its own",
            "initializer_range": getattr(config, "initializer_range", None),
        },
    }
    place = None if source.init in PRESETS else config_place(source.init)
    return LoadedModel(model, place, info, initialiser if source.stream else None)


def _check_memory(model: nn.Module, dtype: torch.dtype, source: ModelSource) -> None:
    """Refuse weights that cannot fit before the machine starts to swap."""
    if source.device != "cpu" or source.stream:
        return
    parameters = sum(p.numel() for p in model.parameters())
    needed, free = parameters * torch.empty(0, dtype=dtype).element_size(), available_memory()
    if needed > free:
        raise InputError(
            f"init={source.init!r} has {parameters / 1e9:.2f} billion parameters, {needed / 2**30:.1f} GiB as "
            f"{str(dtype).removeprefix('torch.')}, and {free / 2**30:.1f} GiB are free: pass --stream, --dtype bfloat16, or fewer "
            "layers with --config-overrides num_hidden_layers=4"
        )


def _from_pretrained(source: ModelSource, folder: Path | None) -> LoadedModel:
    """A checkpoint in a folder or on the Hub, or a GGUF file."""
    more: dict[str, Any] = {}
    path = source.model or ""
    with contextlib.ExitStack() as keep:
        if folder is not None and folder.suffix == ".gguf":
            check_gguf(folder)
            path, more = str(folder.parent), {"gguf_file": folder.name}
        elif folder is not None:
            path = str(keep.enter_context(as_transformers_wants(folder, check_folder(folder))))
        model, loading, weights = _read(source, path, more, folder, keep)
        if weights is not None:
            weights.keep = keep.pop_all()  # until all blocks have been read
    given = str(folder.parent if more else folder) if folder else path
    model.config.name_or_path = model.name_or_path = given
    refuse_missing(model, loading, source.model, drawn=source.classes is not None)
    model = _place(model, source)
    info = {"name": source.name, "source": "pretrained", "path": source.model, "revision": source.revision}
    commit = getattr(model.config, "_commit_hash", None)
    return LoadedModel(
        model,
        given,
        info | ({"commit": commit} if commit else {}) | ({"gguf": more["gguf_file"]} if more else {}),
        weights,
        (
            *left_out(model, loading.get("unexpected_keys", ()), source.model),
            *(drawn([*loading.get("missing_keys", ()), *mismatched_keys(loading)]) if source.head != "none" else ()),
        ),
    )


def _read(
    source: ModelSource, path: str, more: dict[str, Any], folder: Path | None, keep: contextlib.ExitStack
) -> tuple[Any, dict[str, Any], ReadFromDisk | None]:
    from transformers import AutoConfig

    asked = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    weights = None
    try:
        with hub_or_cache(needed=folder is None):
            options = more | source.loading_options
            if source.device == "auto":
                options["device_map"] = "auto"
            if source.stream:
                offload = keep.enter_context(tempfile.TemporaryDirectory(prefix="rksp-"))
                weights = ReadFromDisk(weight_files(path, more), keep)
                options |= on_disk(AutoConfig.from_pretrained(path, **asked), source, offload)
            dtype = DTYPES.get(source.dtype, "auto")
            auto = auto_class(source.head)
            model, loading = auto.from_pretrained(path, dtype=dtype, output_loading_info=True, **asked, **options)
    except RkspError:
        raise
    except Exception as error:  # every layer below has its own: OSError, ValueError, SafetensorError, huggingface_hub's
        raise ModelLoadError(_explain(source.model, error, folder, path)) from error
    return model, loading, weights


def check_on_hub(source: ModelSource) -> None:
    """Refuse an id that the Hub, or the cache of this machine, does not have.

    Raises:
        ModelLoadError: with the cause and what can be passed instead.
    """
    from huggingface_hub.errors import EntryNotFoundError
    from transformers.utils.hub import cached_file

    assert source.model is not None
    try:
        with hub_or_cache():
            cached_file(source.model, "config.json", revision=source.revision)
    except EntryNotFoundError:  # an adapter on the Hub has none
        return
    except Exception as error:
        raise ModelLoadError(_explain(source.model, error, None, source.model)) from error


def _place(model: nn.Module, source: ModelSource) -> nn.Module:
    if source.device not in ("cpu", "auto"):
        model = model.to(source.device)
    return model.eval()


def _check_device(device: str) -> None:
    if device == "auto":
        return
    if device == "meta":
        raise InputError("device='meta' holds no numbers to profile: pass --device cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={device!r} cannot be used: {cause_of(error)}; pass --device cpu") from None


def _explain(model: str | None, error: Exception, folder: Path | None, path: str) -> str:
    cause = cause_of(error)
    if folder is not None and path != str(folder):
        cause = cause.replace(path, str(folder))  # of the links
    text = f"model={model!r} cannot be loaded: {cause}"
    name = type(error).__name__
    if name in ("GatedRepoError",) or "gated repo" in str(error):
        return text + ". It is gated: accept its licence on the Hub and run `hf auth login`"
    if "trust_remote_code" in str(error):
        return text + ". Its code lies in the repository: read it, then pass --trust-remote-code"
    if folder is None and isinstance(error, OSError):
        return (
            f"{text}{hint()}. Pass a folder that holds config.json and weights, or a Hub id (which needs a network, and "
            "`hf auth login` if private)"
        )
    return text
