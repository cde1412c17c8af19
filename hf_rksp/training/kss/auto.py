"""``kss="auto"``: whether KSS acts in a run, decided once, before its first step, from what KSS was measured to do.

KSS gains with RMSNorm at every learning rate. With LayerNorm, or without a norm, it keeps runs that would be lost, and costs a
little in runs that would not: there it acts if the forecast of the run says that it may be lost. Where it was seen to slow
learning (networks without attention) and where the forecast says nothing, it is off. The experiment behind the limits is
``scripts/reproduce/kss_families``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from transformers import Trainer

from hf_rksp.capture import Stack, find_stacks
from hf_rksp.capture.calling import uncompiled
from hf_rksp.capture.linears import find_linears, query_key_pairs
from hf_rksp.capture.norms import Norm, norm_of, norms_in
from hf_rksp.config import KSSConfig
from hf_rksp.errors import CaptureError, InputError, first_line
from hf_rksp.ranks import from_main
from hf_rksp.training.before import Said, say, vectors_vary

logger = logging.getLogger(__name__)

Switch = Literal["auto", "on", "off"]
SWITCHES = ("auto", "on", "off")
_MEANT: dict[object, Switch] = {True: "on", False: "off", "true": "on", "false": "off"}
#: Norm -> probability of being lost from which on KSS acts.
LIMITS: Mapping[Norm, float] = {"none": 0.25, "layer": 0.5, "rms": 0.5}
_NAMES: Mapping[Norm, str] = {"none": "no norm", "layer": "LayerNorm", "rms": "RMSNorm"}


@dataclass(frozen=True)
class Choice:
    """What was decided.

    Attributes:
        on: whether KSS acts.
        text: one sentence for the log and the history.
        values: for the event of the history.
    """

    on: bool
    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """What of a network the choice depends on.

    Attributes:
        norm: of the blocks.
        attention: whether they have queries and keys.
        trained: whether the weights are trained.
    """

    norm: Norm
    attention: bool
    trained: bool

    @property
    def gains_always(self) -> bool:
        """Whether KSS was measured to gain at every learning rate: the forecast is not needed then."""
        return self.norm == "rms" and self.attention and not self.trained


def switch_of(value: object, name: str = "kss") -> Switch:
    """ "auto", "on" or "off" for what a user wrote; true and false are on and off.

    Raises:
        InputError: it is something else; the message has ``name``.
    """
    lowered = value.lower() if isinstance(value, str) else value
    if isinstance(lowered, (str, bool)):
        if lowered in _MEANT:
            return _MEANT[lowered]
        for switch in SWITCHES:
            if switch == lowered:
                return switch  # type: ignore[return-value]
    raise InputError(
        f"{name}={value!r}: pass 'auto', 'on' or 'off'. Settings have arguments of their own (kss_rank, ...) or go to "
        "RKSPTrainer(kss=KSSConfig(...))"
    )


def network_of(model: nn.Module, stacks: Sequence[Stack]) -> Network:
    """Norm, attention and state of a model that no engine has sharded yet."""
    config = getattr(model, "config", None)
    pairs = query_key_pairs(find_linears(stacks, config), config)
    # A state space has vectors that differ from the beginning: the norms tell, if there are any.
    norms = nn.ModuleList(module for module, _ in norms_in(stacks))
    return Network(norm_of(stacks), bool(pairs), vectors_vary(norms if len(norms) else model))


def choose(network: Network, p_lost: float | None, unknown: str = "") -> Choice:
    """Whether KSS acts.

    Args:
        network: see `Network`.
        p_lost: probability that the run is lost without KSS; ``None`` if it is not known.
        unknown: why not.
    """
    limit, name = LIMITS[network.norm], _NAMES[network.norm]
    values = {
        "norm": network.norm,
        "attention": network.attention,
        "trained": network.trained,
        "p_lost": p_lost,
        "limit": limit,
    }
    if network.gains_always:
        return Choice(True, f"KSS is on: with {name} and random weights it gains at every learning rate.", values)
    if p_lost is None:
        return Choice(False, f"KSS is off: it is not known whether this run needs it ({unknown.rstrip('.')}).", values)
    if p_lost >= limit:
        return Choice(
            True, f"KSS is on: P(lost) is {p_lost:.0%}, and with {name} KSS helps from {limit:.0%} on.", values
        )
    return Choice(False, f"KSS is off: P(lost) is {p_lost:.0%}, and with {name} KSS helps from {limit:.0%} on.", values)


def without_forecast(network: Network) -> Choice | None:
    """The choice for a network of which no forecast has to be made; ``None`` if one is needed."""
    if network.gains_always:
        return choose(network, None)
    if not network.attention:
        return choose(network, None, "no run behind the forecast is without attention")
    if network.trained:
        return choose(network, None, "the weights are trained; risk='warn' measures it")
    return None


def decide(trainer: Trainer, kss: KSSConfig, said: Said | None, blocks: str | Sequence[str] | None) -> Choice:
    """The choice for a run of a Trainer, the same on every process. It is logged.

    The forecast is made here if the choice needs it and ``risk`` has not made it, but not for trained weights.

    Args:
        trainer: before its first step, and before an engine has sharded its model.
        kss: settings of KSS.
        said: the forecast of the run, if it was made.
        blocks: path(s) of the list(s) of residual blocks.
    """
    choice: Choice = from_main(_decide(trainer, kss, said, blocks))
    logger.log(logging.WARNING if choice.on else logging.INFO, "%s kss='on' or 'off' decides it yourself.", choice.text)
    return choice


def _decide(trainer: Trainer, kss: KSSConfig, said: Said | None, blocks: str | Sequence[str] | None) -> Choice:
    if kss.schedule != "balanced":
        return Choice(
            True, f"KSS is on: its schedule {kss.schedule!r} was asked for, and 'auto' knows only 'balanced'."
        )
    if trainer.args.n_gpu > 1:
        return Choice(False, "KSS is off: several devices in one process; launch one process per device.")
    model: Any = trainer.model
    if any(hasattr(weight, "ds_id") for weight in model.parameters()):
        return Choice(
            False, "KSS is off: the weights are spread over the processes before training begins (zero.Init)."
        )
    try:
        network = network_of(uncompiled(model), find_stacks(model, blocks))
    except CaptureError as error:
        return Choice(False, f"KSS is off: {first_line(error)}")
    if said is None and (choice := without_forecast(network)) is not None:
        return choice
    said = said or say(trainer, blocks)
    return choose(network, said.p_lost, said.text)
