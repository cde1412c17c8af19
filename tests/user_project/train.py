"""A project that uses hf_rksp, checked by mypy with --strict: the types that the package declares are those that it has."""

from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from hf_rksp import (
    AlignmentMonitor,
    DivergenceGuard,
    GuardConfig,
    KSSConfig,
    RKSPCallback,
    RKSPTrainer,
    RKSPTrainingArguments,
    SpectralMonitor,
    TrainingRun,
)
from hf_rksp.audit import audit
from hf_rksp.errors import RunStoppedError
from hf_rksp.history.read import read_history


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Random tokens."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 64, (12,), generator=torch.Generator().manual_seed(place))
        return {"input_ids": ids, "labels": ids}


def model() -> GPT2LMHeadModel:
    """A tiny network."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32))


def with_trainer(folder: Path) -> int | None:
    """Trainer, with its callback and its guard."""
    args = RKSPTrainingArguments(output_dir=str(folder), max_steps=2, use_cpu=True, report_to="none", guard="skip")
    trainer = RKSPTrainer(model(), args, train_dataset=Rows(), kss=KSSConfig(rank=8), callbacks=[RKSPCallback()])
    try:
        trainer.train()
    except RunStoppedError as error:
        return error.code
    return None


def own_loop(folder: Path) -> list[float]:
    """A loop of one's own."""
    network = model().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    monitors = [SpectralMonitor(), AlignmentMonitor(), DivergenceGuard(GuardConfig("skip"))]
    with TrainingRun(network, folder, 2, monitors, optimizer=optimizer) as run:
        for place in range(2):
            row = {name: value[None] for name, value in Rows()[place].items()}
            loss: torch.Tensor = network(**row).loss
            loss.backward()  # type: ignore[no-untyped-call]
            run.gradients_ready()
            optimizer.step()
            optimizer.zero_grad()
            run.step(loss=loss.item())
    return [float(row["loss"]) for row in read_history(folder).logs]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        print(with_trainer(Path(name, "trainer")), own_loop(Path(name, "loop")), audit.__name__)
