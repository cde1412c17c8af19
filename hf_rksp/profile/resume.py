"""Interrupt a streamed profile and continue with the next block.

A block that is done is not run again: it answers with the states that the newest done block of its stack put out, which are
kept on disk beside the profiles of the layers. Nothing else of the past is needed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from hf_rksp.capture import Stack
from hf_rksp.errors import InputError, OutputError, cause_of
from hf_rksp.profile.layer import LayerProfile
from hf_rksp.profile.share import Share
from hf_rksp.spectral import KreissBracket, Masses

_FILE, _LOCK = "state.pt", "lock"


class Resume:
    """What a streamed profile left in ``folder``, and where it leaves the rest.

    Attributes:
        layers: (stack, index) -> profile of each layer that is done, in the order of depth.
        outputs: stack -> what its newest done block put out, for each batch.
        seconds: spent on them, by phase.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.layers: dict[tuple[str, int], LayerProfile] = {}
        self.outputs: dict[str, list[Any]] = {}
        self.seconds: dict[str, float] = {}
        self._fingerprint = ""
        self._lock = FileLock(self.folder / _LOCK, timeout=0)

    def open(self, fingerprint: Mapping[str, Any]) -> None:
        """Read what is there, and keep the folder from other profiles until `close` is called.

        Args:
            fingerprint: all that the numbers depend on.

        Raises:
            InputError: it was left by another profile, cannot be read, or is in use.
            OutputError: the folder cannot be written to.
        """
        self._fingerprint = json.dumps(fingerprint, sort_keys=True, default=str)
        _acquire(self._lock, self.folder)
        path = self.folder / _FILE
        if not path.exists():
            return
        try:
            with torch.serialization.safe_globals([LayerProfile, Masses, KreissBracket]):
                state = torch.load(path, weights_only=True)
        except Exception as error:  # zip, pickle and system errors
            raise InputError(
                f"resume={str(self.folder)!r}: {_FILE} cannot be read ({cause_of(error)}); delete it to begin anew"
            ) from None
        if state["fingerprint"] != self._fingerprint:
            old, new = json.loads(state["fingerprint"]), json.loads(self._fingerprint)
            differs = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            raise InputError(
                f"resume={str(self.folder)!r} was left by another profile (it differs in {', '.join(differs)}): pass another "
                "folder, or delete it to begin anew"
            )
        self.layers, self.outputs, self.seconds = state["layers"], state["outputs"], state["seconds"]

    def close(self) -> None:
        """Let others have the folder."""
        self._lock.release()

    def save(self, seconds: Mapping[str, float], share: Share) -> None:
        """Write `layers` and `outputs` as they are now, aside and then, when every process has, into place.

        Raises:
            OutputError: the disk is full or the folder gone; the profile itself is not harmed.
        """
        state = {
            "fingerprint": self._fingerprint,
            "layers": self.layers,
            "outputs": self.outputs,
            "seconds": dict(seconds),
        }
        name, problem = "", None
        try:
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".rksp-", suffix=".partial")
            with os.fdopen(handle, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            problem = cause_of(error)
        # Into place when it is written everywhere: processes that stand at different blocks cannot go on.
        problem = next((each for each in share.gather(problem) if each), None)
        try:
            if problem is None:
                os.replace(name, self.folder / _FILE)
        except OSError as error:
            problem = cause_of(error)
        if problem is not None:
            if name:
                Path(name).unlink(missing_ok=True)
            raise OutputError(f"resume={str(self.folder)!r}: cannot be written ({problem})")

    @contextlib.contextmanager
    def watching(self, stacks: Sequence[Stack], batch: Callable[[], int]) -> Iterator[None]:
        """While the context is open, what blocks put out is kept, and those that are done answer without running.

        Open it before a batch stands in front of a block: a module looks up what it will run before its hooks are called.

        Args:
            stacks: of the model.
            batch: number of the batch that is passing.
        """
        with contextlib.ExitStack() as undo:
            for stack in stacks:
                answers = list(self.outputs.get(stack.path, ()))
                for block in stack.blocks:
                    keep = functools.partial(self._keep, stack.path, batch)
                    undo.callback(block.module.register_forward_hook(keep).remove)
                    if (stack.path, block.index) in self.layers:
                        undo.enter_context(_answering(block.module, answers, batch))
            yield

    def _keep(self, stack: str, batch: Callable[[], int], module: nn.Module, args: object, output: object) -> None:
        """A forward hook.

        Raises:
            InputError: the output is nothing that can be kept.
        """
        if not _plain(output):
            raise InputError(f"resume: blocks of {stack} put out a {type(output).__name__}: leave --resume out")
        outputs = self.outputs.setdefault(stack, [])
        outputs.extend([None] * (batch() + 1 - len(outputs)))
        outputs[batch()] = output


def discard(folder: str | os.PathLike[str]) -> None:
    """Delete what a profile left in ``folder``: it is whole, and its report is written; or it is to be done anew.

    Raises:
        InputError: a profile is at work in it.
    """
    path = Path(folder)
    for place in [path, *path.glob("process-*")]:
        if not place.is_dir():
            continue
        # The other processes of a shared profile let go of theirs when this one does: a moment earlier or later.
        lock = FileLock(place / _LOCK, timeout=2)
        _acquire(lock, place)
        try:
            (place / _FILE).unlink(missing_ok=True)
            with contextlib.suppress(PermissionError):  # Windows keeps a file that is open
                (place / _LOCK).unlink()
        finally:
            lock.release()
    for place in path.glob("process-*"):
        with contextlib.suppress(OSError):
            place.rmdir()
    with contextlib.suppress(OSError):
        path.rmdir()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"resume={str(folder)!r}: another profile is at work in it; wait for it, or pass another folder"
        ) from None
    except OSError as error:
        raise OutputError(f"resume={str(folder)!r}: cannot be made ({error.strerror}); pass another") from None


def digest(batches: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of all tensors in the batches."""
    found = hashlib.sha256()
    for batch in batches:
        for name, value in batch.items():
            found.update(name.encode())
            if isinstance(value, Tensor):
                found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextlib.contextmanager
def _answering(module: nn.Module, answers: Sequence[Any], batch: Callable[[], int]) -> Iterator[None]:
    """While the context is open, ``module`` returns the answer for the batch that is passing, without running; its hooks fire."""
    own = module.__dict__.get("forward")
    module.forward = lambda *args, **kwargs: answers[batch()]
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _plain(value: object) -> bool:
    if type(value) is tuple or type(value) is list:
        return all(map(_plain, value))
    return value is None or isinstance(value, (Tensor, bool, int, float))
