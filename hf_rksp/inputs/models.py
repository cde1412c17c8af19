"""Load the model that is to be audited: a checkpoint (Hub id, folder, GGUF, PEFT adapter) or random weights of a config.

What can be seen to be wrong on disk is refused before anything is read: a missing shard, a half-written file, an
adapter without its base. Weights that a checkpoint lacks are refused too, because transformers would fill them with
random numbers and the report would describe those.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_rksp.capture import find_stacks
from hf_rksp.errors import CaptureError, InputError, ModelLoadError
from hf_rksp.inputs.checkpoints import check_folder, local_folder
from hf_rksp.inputs.presets import PRESETS

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Folder names that say nothing of the model: the name of the folder above goes in front.
_GENERIC_NAMES = ("model", "checkpoint", "final", "output", "config.json")
_PEFT_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


@dataclass(frozen=True)
class ModelSource:
    """Which model, and how to load it. Exactly one of ``model`` and ``init`` is given.

    Attributes:
        model: Hub id, local folder, or a ``.gguf`` file.
        init: a preset, a Hub id, a folder or a ``config.json``: random weights of that configuration.
        config_overrides: ``key=value,key=value`` for ``init``.
        seed: of the random weights.
        dtype: "auto" (the checkpoint's own; float32 for random weights) or a name of `DTYPES`.
        device: where the model goes, for example "cpu" or "cuda:0"; "auto" spreads it over what accelerate finds.
        revision: of the Hub repository.
        base_model: base of a PEFT adapter, where the one that the adapter names cannot be had.
        trust_remote_code: run code from the repository. Off unless asked for.
    """

    model: str | None = None
    init: str | None = None
    config_overrides: str | None = None
    seed: int = 42
    dtype: str = "auto"
    device: str = "cpu"
    revision: str | None = None
    base_model: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if (self.model is None) == (self.init is None):
            raise InputError(
                "pass either a model (Hub id or folder) or --init CONFIG for random weights, not both and not neither"
            )
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise InputError(f"dtype={self.dtype!r}: choose among auto, {', '.join(DTYPES)}")
        if self.config_overrides and self.init is None:
            raise InputError("config_overrides (--config-overrides) changes a configuration, so it needs --init CONFIG")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed={self.seed}: pass a whole number from 0 to 2^63 - 1")

    @property
    def name(self) -> str:
        """Short name for titles and file names."""
        given = self.model or self.init or ""
        path = Path(given).expanduser()
        if not path.exists():
            return given
        path = path.resolve()
        return f"{path.parent.name}/{path.name}" if path.name in _GENERIC_NAMES else path.name


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be profiled, the folder or id its tokenizer may come from, and what to say of it in the report."""

    model: nn.Module
    tokenizer_source: str | None
    info: dict[str, Any]


def load_model(source: ModelSource) -> LoadedModel:
    """Load what ``source`` says, in evaluation mode.

    Raises:
        ModelLoadError: the checkpoint or configuration is missing, broken or incomplete; the message names the file.
        InputError: an override names no key of the configuration.
    """
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


def load_config(source: ModelSource) -> Any:
    """The configuration of ``source.init`` with its overrides; derived values are derived anew."""
    from transformers import AutoConfig, PreTrainedConfig

    assert source.init is not None
    if source.init in PRESETS:
        values = dict(PRESETS[source.init])
    else:
        folder = local_folder(source.init)
        try:
            if folder is not None and folder.is_file():
                values = json.loads(folder.read_text(encoding="utf-8"))
            else:
                values, _ = PreTrainedConfig.get_config_dict(str(folder or source.init), revision=source.revision)
        except (OSError, ValueError) as error:
            raise ModelLoadError(
                f"no configuration for init={source.init!r}: {_first_line(error)}. Pass a preset ({', '.join(PRESETS)}), a "
                "folder or file with a config.json, or a Hub id (which needs a network)"
            ) from None
    if not isinstance(values, dict) or "model_type" not in values:
        raise ModelLoadError(
            f"init={source.init!r}: the configuration has no model_type; pass a config.json as transformers saves it"
        )
    values.pop("transformers_version", None)
    try:
        if "auto_map" in values:
            plain = AutoConfig.from_pretrained(
                source.init, trust_remote_code=source.trust_remote_code, revision=source.revision
            )
        else:
            plain = AutoConfig.for_model(**values)
        overrides = _parse_overrides(source.config_overrides, plain)
        if not overrides:
            return plain
        return AutoConfig.for_model(**(values | overrides))
    except InputError:
        raise
    except Exception as error:  # configurations are validated by code of every model, each with its own exceptions
        raise ModelLoadError(
            f"init={source.init!r} with config_overrides={source.config_overrides!r}: {_first_line(error)}"
        ) from None


def _parse_overrides(text: str | None, config: Any) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for item in (text or "").split(","):
        if not item.strip():
            continue
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key:
            raise InputError(f"config_overrides: {item!r} is not key=value; write key=value,key=value")
        if not hasattr(config, key):
            raise InputError(f"config_overrides: {key!r} is not a key of a {config.model_type} configuration")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = {"True": True, "False": False, "None": None}.get(value, value)
        old = getattr(config, key)
        for kind in (bool, int, float):
            if isinstance(old, kind):
                fits = (
                    isinstance(parsed, bool)
                    if kind is bool
                    else isinstance(parsed, (int, float)) and not isinstance(parsed, bool)
                )
                if kind is int and isinstance(parsed, float):
                    fits = False
                if not fits:
                    raise InputError(
                        f"config_overrides: {key}={value!r} has to be a {kind.__name__}, like the default {old!r}"
                    )
                break
        overrides[key] = parsed
    return overrides


def _initialise(source: ModelSource) -> LoadedModel:
    from transformers import AutoModel

    config = load_config(source)
    dtype = DTYPES.get(source.dtype, torch.float32)
    try:
        with torch.random.fork_rng():
            _check_memory(config, dtype, source)
            torch.manual_seed(source.seed)
            # Numbers drawn in float64 are others than those drawn in float32, and a seed has to name one model.
            drawn = torch.float32 if dtype == torch.float64 else dtype
            model = AutoModel.from_config(config, dtype=drawn, trust_remote_code=source.trust_remote_code)
            if dtype == torch.float64:
                model = model.double()
    except InputError:
        raise
    except Exception as error:
        raise ModelLoadError(f"init={source.init!r}: the model cannot be built: {_first_line(error)}") from error
    model = _place(model, source)
    info = {
        "name": source.name,
        "source": "initialised",
        "init": source.init,
        "config_overrides": source.config_overrides,
        "initialisation": {
            "seed": source.seed,
            "scheme": "transformers' own for this architecture",
            "initializer_range": getattr(config, "initializer_range", None),
        },
    }
    return LoadedModel(model, None if source.init in PRESETS else source.init, info)


def _check_memory(config: Any, dtype: torch.dtype, source: ModelSource) -> None:
    """Refuse weights that cannot fit before the machine starts to swap."""
    from transformers import AutoModel

    if source.device != "cpu" or config.model_type not in AutoModel._model_mapping._model_mapping:
        return
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    needed, free = parameters * torch.empty(0, dtype=dtype).element_size(), _available_memory()
    if free is not None and needed > free:
        raise InputError(
            f"init={source.init!r} has {parameters / 1e9:.2f} billion parameters, {needed / 2**30:.1f} GiB as "
            f"{str(dtype).removeprefix('torch.')}, and {free / 2**30:.1f} GiB are free: pass --dtype bfloat16, or fewer layers "
            "with --config-overrides num_hidden_layers=4"
        )


def _available_memory() -> int | None:
    try:
        import psutil  # comes with accelerate
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _from_pretrained(source: ModelSource, path: str, more: dict[str, Any]) -> LoadedModel:
    from transformers import AutoModel

    dtype = DTYPES.get(source.dtype, "auto")
    if source.device == "auto":
        more = more | {"device_map": "auto"}
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
            f"adapter {source.model!r}: adapter_config.json cannot be read: {_first_line(error)}"
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
            f"adapter {source.model!r}: its base model {base!r} cannot be loaded ({_first_line(error)}); "
            "pass --base-model ID_OR_FOLDER"
        ) from error
    try:
        model = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:
        raise ModelLoadError(
            f"adapter {source.model!r} does not fit its base model {base!r}: {_first_line(error)}"
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
        raise InputError(f"device={device!r} cannot be used: {_first_line(error)}; pass --device cpu") from None


def _explain(model: str | None, error: Exception) -> str:
    text = f"model={model!r} cannot be loaded: {_first_line(error)}"
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


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
