"""``kss="auto"``: whether KSS acts in a run, decided once, before its first step.

In the networks of ``scripts/reproduce/kss_default`` KSS gains with RMSNorm at every learning rate. With LayerNorm, or without a
norm, it keeps runs that would be lost, and costs a little in the others. So it acts always in the first case, and in the others
if the forecast says that the run may be lost. Where nothing is known (networks without attention, trained weights), it is off.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import Trainer

from hf_rksp.capture import find_stacks
from hf_rksp.capture.norms import Norm
from hf_rksp.config import KSSConfig
from hf_rksp.errors import InputError, first_line
from hf_rksp.ranks import from_main
from hf_rksp.training.before import Said, say
from hf_rksp.training.kss.network import Network, network_of

logger = logging.getLogger(__name__)
Switch = Literal["auto", "on", "off"]
SWITCHES = ("auto", "on", "off")
_MEANT: dict[object, Switch] = {True: "on", False: "off", "true": "on", "false": "off"}
#: Norm -> probability of being lost from which on KSS acts; with trained weights it is `TRAINED`.
LIMITS: Mapping[Norm, float] = {"none": 0.25, "layer": 0.5, "rms": 0.5}
TRAINED = 0.5
_NAMES: Mapping[Norm, str] = {"none": "no norm", "layer": "LayerNorm", "rms": "RMSNorm"}
#: Key of the choice in the state of a checkpoint, and that of KSS itself.
CHOICE, _KSS = "kss_choice", "kss"


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


def without_forecast(network: Network) -> Choice | None:
    """The choice for a network of which no forecast has to be made; ``None`` if one is needed."""
    if network.gains_always:
        return choose(network, None)
    if not network.attention:
        return choose(network, None, "not every block was seen to have attention")
    if network.trained:
        return choose(network, None, "the weights are trained; risk='warn' makes a forecast")
    return None


def choose(network: Network, p_lost: float | None, unknown: str = "") -> Choice:
    """Whether KSS acts.

    Args:
        network: see `Network`.
        p_lost: probability that the run is lost without KSS; ``None`` if it is not known.
        unknown: why not.
    """
    limit, name = TRAINED if network.trained else LIMITS[network.norm], _NAMES[network.norm]
    values = {
        "norm": network.norm, "attention": network.attention, "trained": network.trained, "p_lost": p_lost, "limit": limit,
    }  # fmt: skip
    if network.gains_always:
        return Choice(
            True, f"KSS is on: it acts in every causal language model with {name} and random weights.", values
        )
    if not network.attention:
        p_lost = None
    if p_lost is None:
        return Choice(False, f"KSS is off: nothing says that this run needs it ({unknown.rstrip('.')}).", values)
    # A share that rounds to its limit is written out.
    share = f"{p_lost:.0%}" if abs(p_lost - limit) >= 0.005 else f"{p_lost:.1%}"
    weights = "trained weights" if network.trained else f"{name} and random weights"
    on = p_lost >= limit
    text = f"KSS is {'on' if on else 'off'}: P(lost) is {share}, and with {weights} it acts from {limit:.0%} on."
    return Choice(on, text, values)


def kept(state: Mapping[str, Any] | None) -> Choice:
    """The choice of a checkpoint for the run that goes on from it; the same on every process.

    Args:
        state: of all parts, as the checkpoint has it; ``None`` if there is none.
    """

    def read() -> Choice:
        if state is None:
            return Choice(False, "KSS is off: the checkpoint does not say whether it acted.")
        if isinstance(state.get(CHOICE), bool):
            return Choice(state[CHOICE], f"KSS stays {'on' if state[CHOICE] else 'off'}, as the checkpoint says.")
        part = state.get(_KSS)
        acted = isinstance(part, Mapping) and not part.get("dormant", False)
        return Choice(acted, f"KSS stays {'on' if acted else 'off'}: it was {'on' if acted else 'off'} before.")

    choice: Choice = from_main(read())
    return choice


def decide(trainer: Trainer, kss: KSSConfig, said: Said | None, blocks: str | Sequence[str] | None) -> Choice:
    """The choice for a run of a Trainer, the same on every process; the main one logs it.

    The forecast is made here if the choice needs it and ``risk`` has not made it, but not for trained weights, and not if the data
    is a stream, because a forecast reads ahead.

    Args:
        trainer: before its first step, and before an engine has sharded its model.
        kss: settings of KSS.
        said: the forecast of the run, if it was made.
        blocks: path(s) of the list(s) of residual blocks.
    """
    main = trainer.args.process_index == 0
    # The main process looks, because weights of the others may not be there yet; all then do the same.
    found: Choice | Network = from_main(_looked(trainer, kss, blocks) if main else None)
    choice = found if isinstance(found, Choice) else None if said else without_forecast(found)
    if choice is None:
        assert isinstance(found, Network)
        if said is None and from_main(isinstance(trainer.train_dataset, torch.utils.data.IterableDataset)):
            choice = choose(found, None, "the data is a stream, of which it reads nothing; risk='warn' does")
        else:
            said = said or say(trainer, blocks)
            choice = choose(found, said.p_lost, said.text)
    if main:
        logger.warning("%s To decide it yourself, pass kss='on' or kss='off'.", choice.text)
    return choice


def _looked(trainer: Trainer, kss: KSSConfig, blocks: str | Sequence[str] | None) -> Choice | Network:
    """What can be said without a forecast, or what the network is."""
    if trainer.args.n_gpu > 1:
        return Choice(False, "KSS is off: there are several devices in one process; launch one process per device.")
    if kss.schedule != "balanced":
        return Choice(
            True, f"KSS is on: its schedule {kss.schedule!r} was asked for, and 'auto' knows only 'balanced'."
        )
    model: Any = trainer.model
    if any(hasattr(weight, "ds_id") or weight.is_meta for weight in model.parameters()):
        return Choice(
            False, "KSS is off: the weights are not on this process before training begins (zero.Init, meta)."
        )
    try:
        return network_of(model, find_stacks(model, blocks))
    except Exception as error:  # the run goes on without an answer
        return Choice(False, f"KSS is off: the model could not be looked at ({first_line(error)}).")
