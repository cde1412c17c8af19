"""Settings of the guard."""

from __future__ import annotations

from dataclasses import dataclass

from hf_rksp.config.checks import require_flag, require_positive, require_whole, setting
from hf_rksp.errors import InputError

#: What the guard can do, the mildest first.
ACTIONS = ("warn", "skip", "cut", "kss", "rollback", "stop")


@dataclass(frozen=True)
class GuardConfig:
    """When a step of a run is taken to fail, and what is done about it.

    Attributes:
        actions: "off", or names of `ACTIONS` joined by "+", such as "skip+rollback". Each one is tried before the next. A run for
            which any other than "warn" is chosen is stopped after the last one.
        loss, norm: a loss and a gradient norm above these fail a step (arXiv:2602.22988: 50 and 500), in a run whose level is below
            half of that.
        limit: so does one that lies so many times the scatter of the run's own past above its median, ...
        patience: ... in so many steps in a row. What is not finite, or above the fixed limits, fails a step at once.
        window: healthy steps that make up the past.
        cooldown: steps after an action in which a failing step calls for the next action; after them the first one is tried again.
        skips, cuts, rollbacks: most of each in a run.
        cut: factor on the learning rate.
        healthy: steps in their band after a checkpoint was saved, from which it is healthy.
        alarms: whether alarms of the monitors fail a step too.
    """

    actions: str = setting(
        "warn", "'off', or warn, skip, cut, kss, rollback, stop joined by +: what is done about a failing step"
    )
    loss: float = setting(50.0, "a loss above it fails a step")
    norm: float = setting(500.0, "a gradient norm above it fails a step")
    limit: float = setting(8.0, "deviation from the run's own past, in units of its scatter, that fails a step")
    patience: int = setting(3, "steps in a row that deviate from the run's own past before the guard acts")
    window: int = setting(128, "healthy steps that make up the past of the run")
    cooldown: int = setting(50, "steps after an action in which a failing step calls for the next action")
    skips: int = setting(10, "steps that are skipped at most")
    cuts: int = setting(3, "cuts of the learning rate at most")
    rollbacks: int = setting(2, "returns to a healthy checkpoint at most")
    cut: float = setting(0.5, "factor on the learning rate at a cut")
    healthy: int = setting(20, "steps in their band after which a checkpoint is healthy")
    alarms: bool = setting(False, "whether alarms of the monitors fail a step too")

    def __post_init__(self) -> None:
        names = self.actions.split("+") if isinstance(self.actions, str) else []
        if self.actions != "off" and (not names or set(names) - set(ACTIONS) or len(set(names)) < len(names)):
            raise InputError(
                f"actions={self.actions!r}: pass 'off', or names out of {', '.join(ACTIONS)} joined by +, each once"
            )
        for name in ("loss", "norm", "limit", "cut"):
            require_positive(name, getattr(self, name))
        for name, least in (
            ("patience", 1),
            ("window", 16),
            ("cooldown", 1),
            ("skips", 1),
            ("cuts", 1),
            ("rollbacks", 1),
            ("healthy", 1),
        ):
            require_whole(name, getattr(self, name), least)
        require_flag("alarms", self.alarms)
        if self.cut >= 1:
            raise InputError(f"cut={self.cut!r}: it makes the learning rate smaller, so pass a factor below 1")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The actions that may be used, the mildest first; a run that may be acted on is stopped at the end."""
        names = set(self.actions.split("+"))
        if names - {"off", "warn"}:
            names.add("stop")
        return tuple(action for action in ACTIONS if action in names)
