"""The spectra of layers from what was kept of them, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch

from hf_rksp.capture import Stack
from hf_rksp.config import SpectralConfig
from hf_rksp.errors import DegenerateMomentsError, RkspError
from hf_rksp.profile.gather import Key
from hf_rksp.profile.layer import LayerProfile, profile_layer
from hf_rksp.profile.share import Share
from hf_rksp.spectral.samples import GroupedSamples

#: A layer and its profile, or why it has none: its states do not vary.
Solved = tuple[Key, LayerProfile | DegenerateMomentsError]


def solve_layers(
    stacks: Sequence[Stack],
    moments: dict[Key, GroupedSamples],
    rank: int | Literal["auto", "full"],
    standard_errors: bool,
    config: SpectralConfig,
    share: Share,
    depths: Mapping[Key, tuple[int, int]],
) -> Iterator[Solved]:
    """Profiles of all layers in ``moments``, in their order. The moments of a layer are released when it is solved.

    Every process solves its share of them, and gets all. ``depths`` has the place of a layer among those of its stack, and their
    number, where that is not the index of its block.
    """
    by_path = {stack.path: stack for stack in stacks}
    keys = list(moments)

    def solve(key: Key) -> Solved:
        stack = by_path[key[0]]
        block = stack.find(key[1])
        place, places = depths.get(key, (block.index, stack.members))
        groups = moments.pop(key).moments()
        try:
            return key, profile_layer(
                groups,
                stack=stack.path,
                index=block.index,
                depth=place / (places - 1) if places > 1 else 0.0,
                path=block.path,
                rank=rank,
                standard_errors=standard_errors,
                config=config,
            )
        except DegenerateMomentsError as error:  # of this layer alone
            return key, DegenerateMomentsError(f"layer {block.path}: {error}")
        except RkspError as error:
            raise type(error)(f"layer {block.path}: {error}") from None

    if share.world == 1:
        yield from _side_by_side(solve, keys)
        return
    own = list(_side_by_side(solve, keys[share.rank :: share.world]))
    moments.clear()
    solved = dict(pair for part in share.gather(own) for pair in part)
    yield from ((key, solved[key]) for key in keys)


def _side_by_side(solve: Callable[[Key], Solved], keys: Sequence[Key]) -> Iterator[Solved]:
    """As many at once as there are threads, one BLAS thread each.

    LAPACK's nonsymmetric eigensolver hardly gains from a second thread; two layers at once gain almost twofold.
    """
    if not keys:
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(min(threads, len(keys)), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(solve, keys)
    finally:
        # Nothing is left to wait for but after an exception or Ctrl-C: then the layers at work are left to themselves.
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(threads)
