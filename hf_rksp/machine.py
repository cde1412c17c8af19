"""What the machine and the installed versions are, as reports and `rksp env` state them."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

_PACKAGES = ("hf_rksp", "torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Version of Python and of every installed package that numbers may depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time in UTC, as reports state it: "2026-01-31T12:00:00Z"."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes, as the operating system counts it."""
    try:
        import resource
    except ImportError:  # Windows has no getrusage
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory() -> int:
    """Bytes of memory that this process can still take: of the machine, or of a container or a job if that leaves less."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_left_in_groups(_OWN_GROUP, _GROUPS)])


#: Linux, control groups of version 2: which one a process is in, and where their limits are.
_OWN_GROUP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def _left_in_groups(own: Path, groups: Path) -> list[int]:
    """Bytes left below each limit of the control group of this process and of those that it is in; nothing without a limit."""
    left = []
    with contextlib.suppress(OSError, ValueError):
        name = next((line[3:] for line in own.read_text().splitlines() if line.startswith("0::")), "/").strip("/")
        for place in (Path(name), *Path(name).parents):
            folder = groups / place
            if not (folder / "memory.max").is_file() or (limit := (folder / "memory.max").read_text().strip()) == "max":
                continue
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / "memory.current").read_text())
            left.append(max(int(limit) - used + int(stat["inactive_file"]), 0))  # the cache of files gives way
    return left


#: Of glibc's malloc.h.
_M_MMAP_THRESHOLD, _MMAP_FROM = -3, 1 << 20


def return_freed_memory() -> None:
    """From now on, tensors above 1 MiB go back to the operating system when they are freed.

    glibc keeps what it thinks will be asked for again, in a heap for each thread. Blocks that come and go in several threads
    leave holes there, and more of them with every block. Does nothing where there is no glibc.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM)


def describe_machine() -> dict[str, object]:
    """Operating system, processor, cores and accelerators."""
    import torch

    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
