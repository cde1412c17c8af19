"""Tiny models, data and runs that the trainer tests share: single process, CPU, nothing loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, set_seed

from hf_rksp import RKSPArguments, RKSPTrainer, RKSPTrainingArguments

VOCAB, WIDTH, LAYERS, TOKENS = 48, 16, 3, 9

#: Far above every modulus: KSS measures and never acts.
NEVER = 1e9
#: Below the largest modulus of every layer of the models here, so KSS acts on all of them at every step.
ALWAYS = 0.91

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")


class Rows(Dataset):
    """A list of rows."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return dict(self.rows[i])


def token_rows(count: int = 32, seed: int = 0, tokens: int = TOKENS) -> Rows:
    """Texts without padding; the labels are the texts."""
    ids = torch.randint(3, VOCAB, (count, tokens), generator=torch.Generator().manual_seed(seed))
    return Rows({"input_ids": row, "labels": row.clone()} for row in ids)


def padded_rows(count: int = 32, filler: int = 0) -> Rows:
    """Texts of different lengths; ``filler`` stands where there is no text."""
    rows = []
    for i, row in enumerate(token_rows(count).rows):
        mask = torch.arange(TOKENS) < TOKENS - i % 4
        rows.append(
            {
                "input_ids": torch.where(mask, row["input_ids"], filler),
                "attention_mask": mask.long(),
                "labels": torch.where(mask, row["labels"], -100),
            }
        )
    return Rows(rows)


def gpt2(dropout: float = 0.1, seed: int = 0, **changes: Any) -> GPT2LMHeadModel:
    """A GPT-2 with enough dropout that every use of the random state shows in the weights."""
    sizes = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": 32}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    set_seed(seed)
    config = GPT2Config(**{**sizes, **drops, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2, **changes})
    return livelier(GPT2LMHeadModel(config))


def livelier(model: nn.Module) -> nn.Module:
    """Larger weights than at initialisation, so that blocks do something and moduli differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


#: Arguments of every run, unless a test says otherwise.
RUN = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
OURS = {
    "kss": "on",
    "kss_rank": 8,
    "kss_upper_threshold": ALWAYS,
    "kss_first_block_weight": 1.0,
    "spectrum_rank": 8,
    "spectrum_every": 2,
    "run_report": False,
}


def arguments(folder: Any, kind: type = RKSPTrainingArguments, **changes: Any) -> Any:
    """Settings where KSS and the monitor are on and act."""
    ours = OURS if issubclass(kind, RKSPArguments) else {}
    return kind(output_dir=str(folder), **{**RUN, **ours, **changes})


def trainer(
    folder: Any,
    model: nn.Module | None,
    rows: Any = None,
    kind: type = RKSPTrainer,
    settings: type = RKSPTrainingArguments,
    **changes: Any,
) -> Any:
    """A trainer of ``kind`` with arguments of the class ``settings``; what no argument is called goes to the trainer."""
    own = {field for field in changes if field not in settings.__dataclass_fields__}
    extra = {name: changes.pop(name) for name in own}
    args = arguments(folder, settings, **changes)
    return kind(model=model, args=args, train_dataset=token_rows() if rows is None else rows, **extra)


def trained(*args: Any, **changes: Any) -> Any:
    """The same, after its run."""
    run = trainer(*args, **changes)
    run.train()
    return run


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_weights(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    """To the bit, unless a tolerance is given."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        if tolerance:
            torch.testing.assert_close(a[name], b[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)
        else:
            assert torch.equal(a[name], b[name]), name


def moved(model: nn.Module, other: nn.Module) -> float:
    """Largest difference between the weights of two models."""
    a, b = weights(model), weights(other)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def history(trainer: Trainer) -> list[dict[str, float]]:
    """What Trainer itself logged: no times, nothing of ours."""
    timed = ("runtime", "per_second", "flos")
    return [
        {
            k: v
            for k, v in row.items()
            if not k.startswith(("kss/", "spectrum/", "spectrum/")) and not any(t in k for t in timed)
        }
        for row in trainer.state.log_history
    ]


def logged(trainer: Trainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def hooks(model: nn.Module) -> int:
    """Number of hooks on the modules and parameters of ``model``."""
    on_modules = sum(len(getattr(module, kind)) for module in model.modules() for kind in HOOKS)
    return on_modules + sum(len(p._backward_hooks or ()) for p in model.parameters())


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step, as the optimizer gets them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.steps.append({n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None})


class TanhBlock(nn.Module):
    """A residual block that may do odd things to its input or output."""

    def __init__(self, width: int, in_place: bool = False) -> None:
        super().__init__()
        self.linear, self.in_place = nn.Linear(width, width), in_place
        self.before = self.after = lambda x: x

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = self.before(hidden_states)
        change = self.linear(torch.tanh(x))  # needs no x in the backward pass, so x may be overwritten
        return self.after(x.add_(change) if self.in_place else x + change)


class Chain(nn.Module):
    """The smallest language model: embedding, residual blocks, head. Its blocks are named with ``blocks="layers"``."""

    accepts_loss_kwargs = False

    def __init__(self, in_place: bool = False, blocks: int = 4, seed: int = 0) -> None:
        super().__init__()
        set_seed(seed)
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(TanhBlock(WIDTH, in_place) for _ in range(blocks))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **ignored: Any) -> dict[str, Tensor]:
        x = 1.0 * self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}
