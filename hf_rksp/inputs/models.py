"""Load the model that is to be audited: a checkpoint (Hub id, folder, GGUF, PEFT adapter) or random weights of a config.

What can be seen to be wrong on disk is refused before anything is read: a missing shard, a half-written file, an
adapter without its base. Weights that a checkpoint lacks are refused too, because transformers would fill them with
random numbers and the report would describe those.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_rksp.capture import Block, find_stacks
from hf_rksp.errors import CaptureError, InputError, ModelLoadError, first_line
from hf_rksp.inputs.checkpoints import check_folder, local_folder
from hf_rksp.inputs.configs import load_config
from hf_rksp.inputs.initialise import Initialiser, skeleton
from hf_rksp.inputs.presets import PRESETS
from hf_rksp.inputs.skeletons import available_memory
from hf_rksp.inputs.source import DTYPES, ModelSource
from hf_rksp.profile.gather import BlockWeights

#: Bytes at either end of a file that are looked at to tell it from another.
_END = 2**20
_PEFT_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be profiled, the folder or id its tokenizer may come from, and what to say of it in the report.

    ``weights`` puts the blocks in place one at a time, for a model that is streamed.
    """

    model: nn.Module
    tokenizer_source: str | None
    info: dict[str, Any]
    weights: BlockWeights | None = None


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
    if source.base_model is not None and not (folder is not None and (folder / "adapter_config.json").is_file()):
        raise InputError(
            f"base_model={source.base_model!r} is for a PEFT adapter, and {source.model!r} is no local adapter: leave it out"
        )
    if folder is not None and folder.suffix == ".gguf":
        return _from_pretrained(source, str(folder.parent), {"gguf_file": folder.name})
    if folder is not None:
        check_folder(folder)
        if (folder / "adapter_config.json").is_file():
            return _from_adapter(source, folder)
    return _from_pretrained(source, str(folder) if folder else source.model, {})


def _initialise(source: ModelSource) -> LoadedModel:
    config = load_config(source)
    dtype = DTYPES.get(source.dtype, torch.float32)
    try:
        double = dtype == torch.float64
        bare = skeleton(config, torch.float32 if double else dtype, source.trust_remote_code)
        initialiser = Initialiser(bare, source.seed, double)
        _check_memory(bare.model, dtype, source)
        if source.stream:
            _check_streams(initialiser.blocks, source)
            initialiser.make_rest()
            model = initialiser.model.eval()
        else:
            model = initialiser.make_all()
    except ModelLoadError as error:
        raise ModelLoadError(f"init={source.init!r}: {error}") from None
    except InputError:
        raise
    except Exception as error:
        raise ModelLoadError(f"init={source.init!r}: the model cannot be built: {first_line(error)}") from error
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
    tokenizer = None if source.init in PRESETS else source.init
    return LoadedModel(model, tokenizer, info, initialiser if source.stream else None)


def _check_memory(model: nn.Module, dtype: torch.dtype, source: ModelSource) -> None:
    """Refuse weights that cannot fit before the machine starts to swap."""
    if source.device != "cpu" or source.stream:
        return
    parameters = sum(p.numel() for p in model.parameters())
    needed, free = parameters * torch.empty(0, dtype=dtype).element_size(), available_memory()
    if free is not None and needed > free:
        raise InputError(
            f"init={source.init!r} has {parameters / 1e9:.2f} billion parameters, {needed / 2**30:.1f} GiB as "
            f"{str(dtype).removeprefix('torch.')}, and {free / 2**30:.1f} GiB are free: pass --stream, --dtype bfloat16, or fewer "
            "layers with --config-overrides num_hidden_layers=4"
        )


def _from_pretrained(source: ModelSource, path: str, more: dict[str, Any]) -> LoadedModel:
    from transformers import AutoModel

    dtype = DTYPES.get(source.dtype, "auto")
    if source.device == "auto":
        more = more | {"device_map": "auto"}
    weights = _ReadFromDisk(_weight_files(path, more)) if source.stream else None
    if weights:
        more = more | _on_disk(path, source, weights.folder.name)
    try:
        model, loading = AutoModel.from_pretrained(
            path,
            dtype=dtype,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
            **more,
        )
    except Exception as error:  # every layer below has its own: OSError, ValueError, SafetensorError, huggingface_hub's
        raise ModelLoadError(_explain(source.model, error)) from error
    _refuse_missing(model, loading, source)
    model = _place(model, source)
    info = {"name": source.name, "source": "pretrained", "path": source.model, "revision": source.revision}
    commit = getattr(model.config, "_commit_hash", None)
    return LoadedModel(
        model,
        path,
        info | ({"commit": commit} if commit else {}) | ({"gguf": more["gguf_file"]} if "gguf_file" in more else {}),
        weights,
    )


class _ReadFromDisk:
    """accelerate reads a block when it runs and lets go of it afterwards, so there is nothing to do.

    What does not lie in safetensors files is copied into a folder, which goes when this does.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = sorted(files)
        self.folder = tempfile.TemporaryDirectory(prefix="rksp-")

    def identity(self) -> object:
        """Name, size, time and a digest of both ends of every file; those of the Hub are named by their commit."""
        return [_identity(file) for file in self.files]

    def make(self, block: Block) -> None:
        """Nothing."""

    def drop(self, block: Block) -> None:
        """Nothing."""


def _weight_files(path: str, more: dict[str, Any]) -> list[Path]:
    folder = Path(path)
    if not folder.is_dir():
        return []
    if "gguf_file" in more:
        return [folder / more["gguf_file"]]
    return [file for suffix in ("safetensors", "bin") for file in folder.glob(f"*.{suffix}")]


def _identity(file: Path) -> list[object]:
    status, ends = file.stat(), hashlib.sha256()
    with file.open("rb") as stream:
        ends.update(stream.read(_END))
        stream.seek(max(0, status.st_size - _END))
        ends.update(stream.read())
    return [file.name, status.st_size, status.st_mtime_ns, ends.hexdigest()]


def _on_disk(path: str, source: ModelSource, folder: str) -> dict[str, Any]:
    """Arguments of from_pretrained that leave the blocks in the files of the checkpoint."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, revision=source.revision, trust_remote_code=source.trust_remote_code)
    except Exception as error:
        raise ModelLoadError(_explain(source.model, error)) from error
    pieces = Initialiser(skeleton(config, torch.float32, source.trust_remote_code), source.seed)
    _check_streams(pieces.blocks, source)
    places = {block.path: "disk" for block in pieces.blocks}
    for name, module in pieces.model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if own and module in pieces.rest:
            leaf = name and not any(module.children())
            places |= {name: "cpu"} if leaf else {f"{name}.{tensor}".lstrip("."): "cpu" for tensor, _ in own}
    return {"device_map": places, "offload_folder": folder}


def _check_streams(blocks: Sequence[Block], source: ModelSource) -> None:
    if not blocks:
        raise InputError(
            f"stream (--stream): no residual blocks are known in {source.name!r} before it runs; leave it out"
        )


def _refuse_missing(model: nn.Module, loading: dict[str, Any], source: ModelSource) -> None:
    """A missing head or pooler is off the residual stream; anything missing in a block is not."""
    try:
        paths = tuple(stack.path + "." for stack in find_stacks(model))
    except CaptureError:
        paths = ("",)
    missing = sorted(str(key) for key in loading.get("missing_keys", ()) if str(key).startswith(paths))
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in loading.get("mismatched_keys", ()))
    for what, keys in (("lacks", missing), ("has another shape for", mismatched)):
        if keys:
            raise ModelLoadError(
                f"the checkpoint {source.model!r} {what} {len(keys)} weights of the residual blocks ({', '.join(keys[:3])}"
                f"{', ...' if len(keys) > 3 else ''}), which would be random: see that config.json belongs to these weights"
            )


def _from_adapter(source: ModelSource, folder: Path) -> LoadedModel:
    import transformers
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise ModelLoadError(
            f"adapter {source.model!r}: adapter_config.json cannot be read: {first_line(error)}"
        ) from error
    base = source.base_model or config.base_model_name_or_path
    if not base:
        raise ModelLoadError(f"adapter {source.model!r} names no base model: pass --base-model ID_OR_FOLDER")
    base_folder = local_folder(base)
    if base_folder is not None:
        check_folder(base_folder)
    auto = getattr(transformers, _PEFT_CLASSES.get(str(config.task_type).removeprefix("TaskType."), "AutoModel"))
    dtype = DTYPES.get(source.dtype, "auto")
    try:
        model = auto.from_pretrained(str(base_folder or base), dtype=dtype, trust_remote_code=source.trust_remote_code)
    except Exception as error:
        raise ModelLoadError(
            f"adapter {source.model!r}: its base model {base!r} cannot be loaded ({first_line(error)}); "
            "pass --base-model ID_OR_FOLDER"
        ) from error
    try:
        model = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:
        raise ModelLoadError(
            f"adapter {source.model!r} does not fit its base model {base!r}: {first_line(error)}"
        ) from error
    model = _place(model, source)
    info = {
        "name": source.name,
        "source": "pretrained",
        "path": source.model,
        "base_model": base,
        "adapter": str(config.peft_type),
    }
    return LoadedModel(model, str(base_folder or base), info)


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
        raise InputError(f"device={device!r} cannot be used: {first_line(error)}; pass --device cpu") from None


def _explain(model: str | None, error: Exception) -> str:
    text = f"model={model!r} cannot be loaded: {first_line(error)}"
    name = type(error).__name__
    if name in ("GatedRepoError",) or "gated repo" in str(error):
        return text + ". It is gated: accept its licence on the Hub and run `hf auth login`"
    if "trust_remote_code" in str(error):
        return text + ". Its code lies in the repository: read it, then pass --trust-remote-code"
    if isinstance(error, OSError):
        return (
            text + ". Pass a folder that holds config.json and weights, or a Hub id (which needs a network, and "
            "`hf auth login` if private)"
        )
    return text
