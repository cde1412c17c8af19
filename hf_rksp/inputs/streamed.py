"""Weights that stay on disk while a model is profiled block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hf_rksp.capture import Block
from hf_rksp.errors import InputError
from hf_rksp.inputs.initialise import Initialiser, skeleton
from hf_rksp.inputs.source import ModelSource

#: Bytes at either end of a file that are looked at to tell it from another.
_END = 2**20


class ReadFromDisk:
    """accelerate reads a block when it runs and lets go of it afterwards, so there is nothing to do.

    What does not lie in safetensors files is copied into a folder, which goes when ``keep`` is closed.
    """

    def __init__(self, files: Sequence[Path], keep: Any) -> None:
        self.files = sorted(files)
        self.keep = keep

    def identity(self) -> object:
        """Name, size, time and a digest of both ends of every file; those of the Hub are named by their commit."""
        return [_identity(file) for file in self.files]

    def make(self, block: Block) -> None:
        """Nothing."""

    def drop(self, block: Block) -> None:
        """Nothing."""


def weight_files(path: str, more: dict[str, Any]) -> list[Path]:
    """The files of a local checkpoint that hold numbers; none for a checkpoint on the Hub."""
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


def on_disk(config: Any, source: ModelSource, folder: str) -> dict[str, Any]:
    """Arguments of from_pretrained that leave the blocks of ``config``'s model in the files of the checkpoint."""
    pieces = Initialiser(skeleton(config, torch.float32, source.trust_remote_code), source.seed)
    check_streams(pieces.blocks, source)
    places = {block.path: "disk" for block in pieces.blocks}
    for name, module in pieces.model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if own and module in pieces.rest:
            leaf = name and not any(module.children())
            places |= {name: "cpu"} if leaf else {f"{name}.{tensor}".lstrip("."): "cpu" for tensor, _ in own}
    return {"device_map": places, "offload_folder": folder}


def check_streams(blocks: Sequence[Block], source: ModelSource) -> None:
    """Refuse a model whose blocks are not known before it runs.

    Raises:
        InputError: there are none.
    """
    if not blocks:
        raise InputError(
            f"stream (--stream): no residual blocks are known in {source.name!r} before it runs; leave it out"
        )
