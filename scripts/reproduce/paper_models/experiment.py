"""Does KSS help text, images, mixtures of experts, Mamba and KAN, and what do their spectra become? One job is one run."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

import hf_rksp.architectures  # noqa: F401 - registers KAN and the ViT with RMSNorm
from hf_rksp import KSSConfig, TrainingRun, profile_model
from hf_rksp.quantities import LAYER
from hf_rksp.report.kit.text import form_of
from scripts.reproduce import data
from scripts.reproduce.harness.intervals import mean, paired, share
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.kss_families.tasks import IMAGES, TRAINED, cifar_file, pictures
from scripts.reproduce.kss_families.train import share_of
from scripts.reproduce.watched import groups_of

#: The paper's rule of a lost run.
MOST_LOSS, MOST_NORM = 50.0, 500.0
#: Mean over the blocks; the paper has them in Tables 11 and 16 to 18.
QUANTITIES = ("nonlinearity_ratio", "near_unit_mass", "contractive_mass", "spectral_radius", "reliable_fraction")
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
    losses, lost, spectra = [], None, [spectrum(model, held_out)]
    with (
        tempfile.TemporaryDirectory() as folder,
        TrainingRun(model, folder, steps, [], kss, optimizer=optimizer) as loop,
    ):
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = job["lr"] * share_of("cosine", step, steps)
            loss = model(**_batch(images, draw, settings)).loss
            (loss + loop.term()).backward()
            loop.gradients_ready()
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), arm["clip"] or math.inf))
            losses.append(float(loss.detach()))
            if not (losses[-1] <= MOST_LOSS and norm <= MOST_NORM):
                lost = step
                break
            optimizer.step()
            optimizer.zero_grad()
            loop.step()
    if lost is None:
        spectra.append(spectrum(model, held_out))
    loss, right = evaluated(model, held_out) if lost is None else (None, None)
    return {
        "lost": lost,
        "loss": sum(losses[-_LAST:]) / _LAST if lost is None else None,
        "held_out": loss,
        "accuracy": right if images else None,
        "losses": [round(sum(part) / len(part), 3) for i in range(0, len(losses), 25) if (part := losses[i : i + 25])],
        "spectra": spectra,
    }


def is_vit(model: str) -> bool:
    """Whether a model of config.yaml learns images."""
    return model.startswith("ViT")


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


def spectrum(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, float]:
    """Mean over the blocks of each quantity."""
    inputs = {name: rows[:_HELD_OUT] for name, rows in batch.items() if name != "labels"}
    found = profile_model(model, [inputs], groups=0, progress=False).aggregates
    return {name: round(float(found[name]["mean"]), 4) for name in QUANTITIES}


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Runs lost and what was learnt, seed by seed against clipping; then the spectra before and after."""
    lines, spectra = [], []
    cells: dict[tuple[str, float], dict[str, dict[int, dict[str, Any]]]] = {}
    for row in rows:
        cells.setdefault((row["model"], row["lr"]), {}).setdefault(row["arm"], {})[row["seed"]] = row
    for (model, lr), arms in cells.items():
        for arm, runs in arms.items():
            count = sum(row["lost"] is not None for row in runs.values())
            ended = [row for row in runs.values() if row["lost"] is None]
            beside = paired(*({seed: row["held_out"] for seed, row in each.items() if row["lost"] is None}
                              for each in (runs, arms.get("clip", {}))))  # fmt: skip
            right = [row["accuracy"] for row in ended if row["accuracy"] is not None]
            lines.append(
                [
                    model, f"{lr:g}", arm, f"{count} of {len(runs)} {share(count, len(runs)).text(2)}",
                    mean([row["held_out"] for row in ended]).text() if ended else "-",
                    beside.text() if arm != "clip" and beside.count > 1 else "-",
                    mean(right).text() if right else "-",
                ]
            )  # fmt: skip
            for place, when in ((0, "before"), (1, "after")):
                found = [row["spectra"][place] for row in ended]
                if found and (when == "after" or arm == "clip"):
                    means = [form_of(LAYER[name])(sum(one[name] for one in found) / len(found)) for name in QUANTITIES]
                    spectra.append([model, f"{lr:g}", "-" if when == "before" else arm, when, *means])
    heads = ["model", "learning rate", "arm", "lost", "held-out loss", "minus clipping", "accuracy"]
    titles = [LAYER[name].title for name in QUANTITIES]
    text = [*table(heads, lines), "", "Mean over the blocks of the runs that end:", ""]
    return "\n".join([*text, *table(["model", "learning rate", "arm", "training", *titles], spectra)]) + "\n"
