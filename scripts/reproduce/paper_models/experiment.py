"""Does KSS help text, images, mixtures of experts, Mamba and KAN, and what do their spectra become? One job is one run."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

import hf_rksp.architectures  # noqa: F401 - registers KAN and the ViT with RMSNorm
from hf_rksp import KSSConfig, SpectralShaper, TrainingRun
from scripts.reproduce import data
from scripts.reproduce.kss_families.tasks import IMAGES, TRAINED, cifar_file, pictures
from scripts.reproduce.kss_families.train import share_of, task_gradient_norm
from scripts.reproduce.spectra import means_of_blocks
from scripts.reproduce.watched import groups_of

from .tables import QUANTITIES, is_vit, tables

__all__ = ["check", "run", "tables"]

#: The paper's rule of a lost run.
MOST_LOSS, MOST_NORM = 50.0, 500.0
#: Steps whose mean is the training loss at the end, and rows that are held out.
_LAST, _HELD_OUT = 50, 32


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The data is there, and every model and arm is in the settings."""
    data.wikitext_file("test")
    data.wikitext_file("validation")
    cifar_file()
    for field in ("model", "arm"):
        if unknown := {job[field] for job in jobs} - settings[f"{field}s"].keys():
            raise ValueError(f"{field} {', '.join(sorted(unknown))}: choose among {', '.join(settings[f'{field}s'])}")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Train; whether the run was lost, the loss on held-out data, the share of right images, and the spectra before and after."""
    arm, steps = settings["arms"][job["arm"]], settings["fewer_steps"].get(job["model"], settings["steps"])
    torch.manual_seed(job["seed"])
    model: Any = network(settings["models"][job["model"]], settings["length"]).train()
    images = is_vit(job["model"])
    optimizer = torch.optim.AdamW(groups_of(model, settings["decay"]), lr=job["lr"])
    draw = torch.Generator().manual_seed(10_000 + job["seed"])
    held_out = _batch(images, torch.Generator().manual_seed(1), settings, held_out=True)
    kss = KSSConfig(**arm["kss"], seed=job["seed"]) if arm["kss"] is not None else None
    losses, largest, lost, spectra = [], 0.0, None, [spectrum(model, held_out)]
    with (
        tempfile.TemporaryDirectory() as folder,
        TrainingRun(model, folder, steps, [], kss, optimizer=optimizer) as loop,
    ):
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = job["lr"] * share_of("cosine", step, steps)
            batch = _batch(images, draw, settings)
            loss = model(**batch).loss
            (loss + loop.term()).backward()
            loop.gradients_ready()
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), arm["clip"] or math.inf))
            if kss is not None and not norm < MOST_NORM / 5:
                norm = task_gradient_norm(model, batch)  # a run is not lost by the gradient of KSS
            losses.append(float(loss.detach()))
            largest = max(largest, norm)
            if not (losses[-1] <= MOST_LOSS and norm <= MOST_NORM):
                lost = step
                break
            optimizer.step()
            optimizer.zero_grad()
            loop.step()
    if lost is None:
        spectra.append(spectrum(model, held_out))
    shapers = [part for part in loop.parts if isinstance(part, SpectralShaper)]
    loss, right = evaluated(model, held_out) if lost is None else (None, None)
    return {
        "lost": lost,
        "largest_gradient_norm": largest,
        "loss": sum(losses[-_LAST:]) / _LAST if lost is None else None,
        "held_out": loss,
        "accuracy": right if images else None,
        "losses": [round(sum(part) / len(part), 3) for i in range(0, len(losses), 25) if (part := losses[i : i + 25])],
        "spectra": spectra,
        # A KSS that stands aside would look like one without an effect.
        "skipped": sum(shaper.aside.count for shaper in shapers),
        "dropped": sum(shaper.dropped for shaper in shapers),
    }


def network(values: dict[str, Any], length: int) -> nn.Module:
    """A network of the settings, as transformers initialises it."""
    if values["model_type"].startswith("vit"):
        return AutoModelForImageClassification.from_config(AutoConfig.for_model(**values))
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "use_cache": False, "vocab_size": 256}
    longest = {} if values["model_type"] == "mamba" else {"max_position_embeddings": length}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**values, **ends, **longest))


def _batch(images: bool, draw: torch.Generator, settings: dict[str, Any], held_out: bool = False) -> dict[str, Tensor]:
    if images:
        among = range(TRAINED, IMAGES) if held_out else range(TRAINED)
        count = 16 * _HELD_OUT if held_out else settings["images"]
        return pictures(torch.randint(among.start, among.stop, (count,), generator=draw))
    text, count = data.wikitext("validation" if held_out else "test"), _HELD_OUT if held_out else settings["sequences"]
    ids = data.passages(text, draw, count, settings["length"])
    return {"input_ids": ids, "labels": ids}


@torch.no_grad()
def evaluated(model: Any, batch: dict[str, Tensor]) -> tuple[float, float | None]:
    """Loss on a batch, without the loss of a router; of images also the share that is right."""
    model.eval()
    output = model(**batch)
    logits, labels = output.logits, batch["labels"]
    if logits.dim() == 3:
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return float(loss), None
    return float(nn.functional.cross_entropy(logits, labels)), float((logits.argmax(-1) == labels).double().mean())


def spectrum(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, float] | None:
    """Mean over the blocks of each quantity; ``None`` if the states are not finite or do not vary."""
    inputs = {name: rows[:_HELD_OUT] for name, rows in batch.items() if name != "labels"}
    found = means_of_blocks(model, inputs)
    return None if found is None else {name: found[name] for name in QUANTITIES}
