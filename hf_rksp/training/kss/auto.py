"""``kss="auto"``: whether KSS acts in a run, decided once, before its first step.

In the networks of ``scripts/reproduce/kss_default`` and ``kss_families`` KSS gains at every learning rate with RMSNorm before the
parts of a block (attention, MLP). With RMSNorm behind them, with LayerNorm, or without a norm, it keeps runs that would be lost and
costs a little in the others. So it acts always in the first case, and in the others if the forecast says that the run may be lost.
Where nothing is known (networks without attention, trained weights), it is off.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import Trainer

from hf_rksp.capture.calling import uncompiled
from hf_rksp.capture.norms import Norm
from hf_rksp.config import KSSConfig
from hf_rksp.errors import CaptureError, InputError, first_line
from hf_rksp.ranks import from_main
from hf_rksp.training.before import Said, say
from hf_rksp.training.kss.look import stacks_without_data
from hf_rksp.training.kss.network import Network, network_of

logger = logging.getLogger(__name__)
Switch = Literal["auto", "on", "off"]
#: What users write.
_MEANT: Mapping[object, Switch] = {
    "auto": "auto", "on": "on", "off": "off", True: "on", False: "off", "true": "on", "false": "off",
}  # fmt: skip
#: Norm -> probability of being lost from which on KSS acts; with trained weights it is `TRAINED`.
LIMITS: Mapping[Norm, float] = {"none": 0.25, "layer": 0.5, "rms": 0.5}
TRAINED = 0.5
_NAMES: Mapping[Norm, str] = {"none": "no norm", "layer": "LayerNorm", "rms": "RMSNorm"}
#: Key of the decision in the state of a checkpoint, and that of KSS itself.
DECISION, _KSS = "kss_decision", "kss"


@dataclass(frozen=True)
class Decision:
    """What was decided.

    Attributes:
        on: whether KSS acts.
        text: one sentence for the log and the history.
        values: for the event of the history.
    """

    on: bool
    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


def switch_of(value: object) -> Switch:
    """ "auto", "on" or "off" for what a user wrote; true and false are on and off.

    Raises:
        InputError: it is something else.
    """
    lowered = value.lower() if isinstance(value, str) else value
    if isinstance(lowered, (str, bool)) and lowered in _MEANT:
        return _MEANT[lowered]
    raise InputError(
        f"kss={value!r}: pass 'auto', 'on' or 'off'. Settings have arguments of their own (kss_rank, ...) or go to "
        "RKSPTrainer(kss=KSSConfig(...))"
    )


def without_forecast(network: Network) -> Decision | None:
    """The decision for a network of which no forecast has to be made; ``None`` if one is needed."""
    if network.gains_always:
        return choose(network, None)
    if network.trained:
        return choose(network, None, "the weights are trained, or may be; risk='warn' makes a forecast")
    if not network.attention:
        return choose(network, None, "not every block was seen to have attention")
    return None


def choose(network: Network, p_lost: float | None, unknown: str = "") -> Decision:
    """Whether KSS acts.

    Args:
        network: see `Network`.
        p_lost: probability that the run is lost without KSS; ``None`` if it is not known.
        unknown: why not.
    """
    limit = TRAINED if network.trained else LIMITS[network.norm]
    name = _NAMES[network.norm] + (" behind attention and MLP" if network.behind else "")
    values = {
        "norm": network.norm, "norm_behind": network.behind, "attention": network.attention, "trained": network.trained,
        "p_lost": p_lost, "limit": limit,
    }  # fmt: skip
    if network.gains_always:
        return Decision(
            True,
            f"KSS is on. The network is a causal language model with random weights and {name} before attention and MLP.",
            values,
        )
    if not network.attention:
        p_lost = None
    if p_lost is None:
        return Decision(
            False,
            f"KSS is off: it is not known whether this run needs it. {unknown[:1].upper()}{unknown[1:].rstrip('.')}.",
            values,
        )
    # A share that rounds to its limit is written out.
    share = f"{p_lost:.0%}" if abs(p_lost - limit) >= 0.005 else f"{p_lost:.1%}"
    weights = "trained weights" if network.trained else f"{name} and random weights"
    on = p_lost >= limit
    text = f"KSS is {'on' if on else 'off'}: P(lost) is {share}. With {weights} KSS acts from {limit:.0%} on."
    return Decision(on, text, values)


def by_forecast(network: Network, said: Said) -> Decision:
    """Whether KSS acts in a run of which that was said; an interval that decides nothing is no answer."""
    return choose(network, said.p_lost if said.decides else None, said.text)


def kept(state: Mapping[str, Any] | None) -> Decision:
    """The decision of a checkpoint for the run that goes on from it; the same on every process.

    Args:
        state: of all parts, as the checkpoint has it; ``None`` if there is none.
    """

    decision: Decision = from_main(_kept(state))
    return decision


def _kept(state: Mapping[str, Any] | None) -> Decision:
    if state is None:
        return Decision(False, "KSS is off: the checkpoint does not say whether it acted.")
    if isinstance(state.get(DECISION), bool):
        return Decision(state[DECISION], f"KSS stays {'on' if state[DECISION] else 'off'}, as the checkpoint says.")
    part = state.get(_KSS)
    acted = isinstance(part, Mapping) and not part.get("dormant", False)
    return Decision(acted, f"KSS stays {'on' if acted else 'off'}: it was {'on' if acted else 'off'} before.")


def decide(trainer: Trainer, kss: KSSConfig, said: Said | None, blocks: str | Sequence[str] | None) -> Decision:
    """The decision for a run of a Trainer, the same on every process; the main one logs it.

    The forecast is made here if the decision needs it and ``risk`` has not made it. It is not made for trained weights, and not
    if the data is a stream, because a forecast reads ahead.

    Args:
        trainer: before its first step, and before an engine has sharded its model.
        kss: settings of KSS.
        said: the forecast of the run, if it was made.
        blocks: path(s) of the list(s) of residual blocks.
    """
    main = trainer.args.process_index == 0
    # All look, because a model may talk to the other processes in its pass. The main process decides, because the weights of the
    # others may not be there yet.
    found: Decision | Network = from_main(_looked(trainer, kss, said, blocks))
    decision = found if isinstance(found, Decision) else None if said else without_forecast(found)
    if decision is None:
        assert isinstance(found, Network)
        if said is None and from_main(isinstance(trainer.train_dataset, torch.utils.data.IterableDataset)):
            decision = choose(found, None, "the data is a stream, and 'auto' does not read ahead; risk='warn' does")
        else:
            said = said or say(trainer, blocks)
            decision = by_forecast(found, said)
    if main:
        logger.warning("%s To decide it yourself, pass kss='on' or kss='off'.", decision.text)
    return decision


def _looked(
    trainer: Trainer, kss: KSSConfig, said: Said | None, blocks: str | Sequence[str] | None
) -> Decision | Network:
    """What can be said without a forecast, or what the network is."""
    if trainer.args.n_gpu > 1:
        return Decision(False, "KSS is off: there are several devices in one process; launch one process per device.")
    if kss.schedule != "balanced":
        return Decision(
            True, f"KSS is on: its schedule {kss.schedule!r} was asked for, and 'auto' knows only 'balanced'."
        )
    model: Any = trainer.model
    if any(hasattr(one, "ds_id") or one.is_meta or type(one).__name__ == "DTensor" for one in model.parameters()):
        return Decision(
            False,
            "KSS is off: the weights are not whole on this process before training begins (zero.Init, meta, DTensor).",
        )
    try:
        stacks = stacks_without_data(model, blocks)
        return network_of(model, stacks, said is not None, trainer.compute_loss_context_manager)
    except CaptureError:
        name = type(uncompiled(model)).__name__
        return Decision(False, f"KSS is off: no residual blocks were found in {name} before the first batch.")
    except Exception as error:  # the run goes on without an answer
        return Decision(False, f"KSS is off: the model could not be looked at. {first_line(error)}")
