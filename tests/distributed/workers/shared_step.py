"""What is measured before step 0, by one process and by two together; with a loss that has a collective, too."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_rksp.errors import NonFiniteError
from hf_rksp.profile.gradients import model_loss
from hf_rksp.profile.start import measure_start
from hf_rksp.profile.step import measure_step
from hf_rksp.profile.together import can_share

folder, shared = Path(sys.argv[1]), sys.argv[2] == "2"
rank = 0
if shared:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2)).eval()
before = {name: value.clone() for name, value in model.state_dict().items()}
batches = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 4, (8, 4, 16))]


def gathered(model, batch):
    """A loss as contrastive ones are: it waits for the other processes."""
    loss = model_loss(model, batch)
    if shared:
        torch.distributed.all_reduce(loss.detach().clone())
    return loss


def broken(model, batch):
    """Not finite on the last batch alone, which one process has."""
    return model_loss(model, batch) * (float("nan") if batch is batches[-1] else 1.0)


def raised(loss):
    try:
        measure_step(model, loss, batches, shared=shared, progress=False)
    except (NonFiniteError, RuntimeError) as error:
        return str(error)
    return ""


found = {
    "start": asdict(measure_start(model, None, batches, shared=shared, progress=False)),
    "averaged": asdict(measure_step(model, None, batches, optimizer="adam_averaged", shared=shared, progress=False)),
    "moved": asdict(measure_step(model, None, batches, first_step=1e-3, shared=shared, progress=False)),
    "few": asdict(measure_step(model, None, batches[:3], pairs=3, shared=shared, progress=False)),
    "collective": asdict(measure_start(model, gathered, batches, shared=shared, progress=False).step),
    "allowed": [can_share(model, partial(loss, model, batches[0]), 8) for loss in (model_loss, gathered)],
    "broken": raised(broken),
    "unchanged": all(torch.equal(before[name], value) for name, value in model.state_dict().items()),
}
(folder / f"{sys.argv[2]}-{rank}.json").write_text(json.dumps(found, default=str))
if shared:
    torch.distributed.barrier()
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # some builds abort at teardown, after the work is done
