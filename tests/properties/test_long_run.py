"""A long run takes no more memory than a short one: a run of 100,000 steps with `make fuzz`, a shorter one within `make test`."""

import gc
import json
import os
import tracemalloc
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_rksp import (
    AlignmentConfig,
    AlignmentMonitor,
    AttentionConfig,
    AttentionMonitor,
    DivergenceGuard,
    GuardConfig,
    MonitorConfig,
    SpectralMonitor,
    TrainingRun,
)

STEPS = int(os.environ.get("LONG_RUN", "400"))
#: Bytes by which Python's own objects may grow from a tenth of the run to its end, whatever its length.
MOST = 200_000
#: Longer runs are not traced, which would double their time: their objects are counted, and the memory of the process is looked at.
TRACED = 2_000
MOST_OBJECTS, MOST_PAGES = 2_000, 5_000


def held_now():
    """Traced bytes, or the objects that the garbage collector follows and the pages of memory of this process."""
    gc.collect()
    if tracemalloc.is_tracing():
        return [tracemalloc.get_traced_memory()[0]]
    return [len(gc.get_objects()), int(Path("/proc/self/statm").read_text().split()[1])]


def test_memory_stays_flat(tmp_path):
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8, "vocab_size": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    parts = [
        SpectralMonitor(MonitorConfig(every=50, rank=2)),
        AlignmentMonitor(AlignmentConfig(every=10)),
        AttentionMonitor(AttentionConfig(every=10)),
        DivergenceGuard(GuardConfig("skip", skips=10**6)),
    ]
    ids = torch.randint(0, 16, (2, 8))
    held, states = [], []
    if STEPS <= TRACED:
        tracemalloc.start()
    with TrainingRun(model, tmp_path, STEPS, parts, optimizer=optimizer) as run:
        for step in range(STEPS):
            loss = model(input_ids=ids, labels=ids).loss
            (loss * (float("nan") if step % 100 == 99 else 1.0)).backward()  # a step that fails now and then
            run.gradients_ready()
            optimizer.step()
            optimizer.zero_grad()
            run.step()
            if step in (STEPS // 10, STEPS - 2):
                held.append(held_now())
                states.append(len(json.dumps(run.state_dict(), default=lambda tensor: tensor.tolist())))
    tracemalloc.stop()
    grown = [end - begin for begin, end in zip(*held, strict=True)]
    most = [MOST] if STEPS <= TRACED else [MOST_OBJECTS, MOST_PAGES]
    assert all(one < limit for one, limit in zip(grown, most, strict=True)), held
    assert states[1] < 2 * states[0] + 20_000, "the state of a checkpoint"
