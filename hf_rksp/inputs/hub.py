"""The Hub, or the files that are here: that it does not answer is found out in seconds, not after every library's retries."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from hf_rksp.errors import cause_of

#: Seconds to wait for an answer, looking the name up included, and for how long an answer holds.
_WAIT, _HOLDS = 3.0, 60.0
_asked: list[tuple[float, str, str | None]] = []


@contextlib.contextmanager
def hub_or_cache(needed: bool = True) -> Iterator[None]:
    """Inside, the libraries ask the Hub, or, if it does not answer, only the cache of this machine.

    Args:
        needed: ``False`` for what lies on this disk: nobody is asked then.
    """
    if not needed or _is_offline() or silence() is None:
        yield
        return
    before = _set_offline((True, True))
    try:
        yield
    finally:
        _set_offline(before)


def silence() -> str | None:
    """Why the Hub does not answer, or ``None`` if it does, or if the user has told the libraries not to ask it."""
    from huggingface_hub import constants

    if _is_offline():
        return None
    now = time.monotonic()
    if not _asked or now - _asked[-1][0] > _HOLDS or _asked[-1][1] != constants.ENDPOINT:
        _asked[:] = [(now, constants.ENDPOINT, _ask(constants.ENDPOINT))]
    return _asked[-1][2]


def hint() -> str:
    """What an error about a name on the Hub adds: that the Hub was not reached."""
    from huggingface_hub import constants

    if _asked and _asked[-1][2] is not None and time.monotonic() - _asked[-1][0] <= _HOLDS:
        return f" ({constants.ENDPOINT} does not answer: {_asked[-1][2]})"
    return " (HF_HUB_OFFLINE is set, so only the cache was looked at)" if _is_offline() else ""


def _ask(endpoint: str) -> str | None:
    # In a thread, because looking a name up takes as long as it likes, whatever timeout a request has.
    found: list[str | None] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            answer = get_session().head(endpoint, timeout=_WAIT, follow_redirects=False)
            found.append(f"status {answer.status_code}" if answer.status_code >= 500 else None)
        except Exception as error:  # of httpx, of a proxy, of ssl
            found.append(cause_of(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_WAIT)
    return found[0] if found else f"no answer within {_WAIT:g} seconds"


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _set_offline(values: tuple[bool, bool]) -> tuple[bool, bool]:
    """Tell huggingface_hub (and with it transformers) and datasets; returns what they were told before."""
    from huggingface_hub import constants

    # datasets takes a second to load, and only who reads a dataset has done so.
    config: Any = sys.modules.get("datasets.config")
    before = bool(constants.HF_HUB_OFFLINE), bool(getattr(config, "HF_HUB_OFFLINE", False))
    constants.HF_HUB_OFFLINE = values[0]
    if config is not None:
        config.HF_HUB_OFFLINE = config.HF_DATASETS_OFFLINE = values[1]
    return before
