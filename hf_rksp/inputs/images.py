"""Real images, as the model's own image processor prepares them; resized and scaled to [-1, 1] for a model without one."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_rksp.errors import InputError, ModelLoadError, cause_of
from hf_rksp.inputs.hub import hint, hub_or_cache
from hf_rksp.inputs.paths import as_path, written_like_a_path

#: Images that a draw is from.
_DRAWN_FROM = 1000


@dataclass(frozen=True)
class ImageSource:
    """Where the images come from.

    Attributes:
        name: parquet file, folder of images, or a dataset on the Hub; ``$NAME`` stands for an environment variable.
        split: of a dataset. Its first column with images is taken.
    """

    name: str
    split: str = "test"


@dataclass(frozen=True)
class Images:
    """Images, shape ``(n, channels, height, width)`` float32, and what to say of them in the report."""

    pixels: torch.Tensor
    info: dict[str, Any]

    def batches(self, size: int) -> list[dict[str, torch.Tensor]]:
        """Batches of ``pixel_values``."""
        return [{"pixel_values": part} for part in self.pixels.split(size)]


def load_image_processor(model: str | None, **kwargs: Any) -> Any | None:
    """The image processor that a checkpoint comes with, or ``None`` if it has none. ``kwargs`` go to ``AutoImageProcessor``.

    Raises:
        ModelLoadError: it has one that cannot be loaded: other pixels than the model was trained on would be no substitute.
    """
    if model is None or not _has_image_processor(model, kwargs.get("revision")):
        return None
    from transformers import AutoImageProcessor

    try:
        with hub_or_cache(needed=not as_path(model).exists()):
            return AutoImageProcessor.from_pretrained(model, **kwargs)
    except Exception as error:  # of json, of transformers, of code from the repository
        raise ModelLoadError(
            f"the image processor of model={model!r} cannot be loaded: {cause_of(error)}; correct its "
            "preprocessor_config.json, or audit a copy without it"
        ) from None


def _has_image_processor(model: str, revision: str | None) -> bool:
    from transformers.utils.hub import cached_file

    with (
        contextlib.suppress(OSError),
        hub_or_cache(needed=not as_path(model).exists()),
    ):  # nobody can be asked: the model itself came from the cache
        name = "preprocessor_config.json"
        return cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False) is not None
    return False


def read_images(source: ImageSource, config: Any, tokens: int, seed: int, processor: Any | None = None) -> Images:
    """Images drawn from the first thousand, enough for ``tokens`` patches of the model that ``config`` describes.

    Args:
        processor: of the model (``load_image_processor``); ``None``: resized by bicubic interpolation, scaled to [-1, 1].

    Raises:
        InputError: nothing is there, it holds no images, or too few; the model has no fixed image size, or its processor
            makes another one.
    """
    side, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if not isinstance(side, int) or not isinstance(patch, int):
        raise InputError(
            f"images={source.name!r}: image_size={side!r} and patch_size={patch!r} of this model are no whole numbers; call "
            "hf_rksp.profile_model(model, batches) with batches of its own"
        )
    if not 0 < patch <= side:
        raise InputError(
            f"images={source.name!r}: patches of {patch} pixels do not fit images of {side}; see patch_size"
        )
    if getattr(config, "num_channels", 3) != 3:
        raise InputError(
            f"images={source.name!r}: this model takes {config.num_channels} channels, and these are images in colour; call "
            "hf_rksp.profile_model(model, batches) with batches of its own"
        )
    count = -(-tokens // (side // patch) ** 2)
    rows = _rows(source)
    pixels, digest = [], hashlib.sha256()
    for row in _read(rows.shuffle(seed=seed, buffer_size=_DRAWN_FROM).take(count), source):
        image = next((value for value in row.values() if hasattr(value, "convert")), None)
        if image is None:
            raise InputError(f"images={source.name!r} has no column with images, only {', '.join(map(str, row))}")
        array, values = _resized(image, side) if processor is None else _processed(image, side, processor, source)
        digest.update(array.tobytes())
        pixels.append(values)
    if len(pixels) < count:
        raise InputError(
            f"images={source.name!r} has {len(pixels)} images, and tokens={tokens} needs {count}: pass more, or less --tokens"
        )
    info = {
        "source": source.name,
        "split": source.split,
        "images": count,
        "side": side,
        "patches": (side // patch) ** 2,
        "scaling": "bicubic, to [-1, 1]" if processor is None else f"{type(processor).__name__} of the model",
        "seed": seed,
        "sha256": digest.hexdigest(),
    }
    return Images(torch.stack(pixels), info)


def _resized(image: Any, side: int) -> tuple[np.ndarray, torch.Tensor]:
    """Bytes of an image, shape ``(side, side, 3)``, and its pixels."""
    array = np.array(image.convert("RGB").resize((side, side), resample=3), dtype=np.uint8)  # 3: bicubic
    return array, (torch.from_numpy(array).permute(2, 0, 1) / 255 - 0.5) / 0.5


def _processed(image: Any, side: int, processor: Any, source: ImageSource) -> tuple[np.ndarray, torch.Tensor]:
    values = processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"][0].float()
    if values.shape != (3, side, side):
        raise InputError(
            f"images={source.name!r}: {type(processor).__name__} of this model makes pixels of shape {tuple(values.shape)}, and "
            f"its configuration says image_size={side}: correct preprocessor_config.json, or take it out"
        )
    return values.numpy(), values


def _read(rows: Iterable[Any], source: ImageSource) -> Iterator[Any]:
    try:
        with hub_or_cache(needed=not as_path(source.name).exists()):
            yield from rows
    except Exception as error:  # of datasets, pyarrow, PIL and the network
        raise InputError(
            f"images={source.name!r}: an image cannot be read ({cause_of(error)}); take it out, or pass others"
        ) from None


def _rows(source: ImageSource) -> Any:
    import datasets

    path = as_path(source.name)
    if not source.name.strip() or len(source.name) > 200:
        raise InputError(
            f"images={source.name[:200]!r} does not exist: pass a parquet file, a folder or a dataset on the Hub"
        )
    try:
        if path.is_file():
            return datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        if path.is_dir():
            files = sorted(
                str(file)
                for file in path.rglob("*.parquet")
                if re.search(rf"(?<![a-z]){re.escape(source.split)}(?![a-z])", file.name)
            )
            if files:
                return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
            return datasets.load_dataset("imagefolder", data_dir=str(path), split=source.split, streaming=True)
        if written_like_a_path(source.name):
            raise InputError(
                f"images={source.name!r} does not exist: pass a parquet file, a folder or a dataset on the Hub"
            )
        with hub_or_cache():
            return datasets.load_dataset(source.name, split=source.split, streaming=True)
    except InputError:
        raise
    except Exception as error:  # datasets raises its own, huggingface_hub's, pyarrow's and requests' errors
        raise InputError(
            f"images={source.name!r} (split {source.split!r}) cannot be loaded: {cause_of(error)}"
            f"{'' if path.exists() else hint()}; pass a parquet file, a folder, or a dataset on the Hub (which needs a network)"
        ) from None
