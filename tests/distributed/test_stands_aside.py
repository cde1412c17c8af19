"""One process cannot read some layers in some passes: the others leave them out too, and nobody waits for ever."""

import json
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp

from hf_rksp import SpectralShaper
from hf_rksp.capture import find_stacks
from hf_rksp.capture.agreement import found_anywhere
from hf_rksp.config import KSSConfig, MonitorConfig
from hf_rksp.training.engine import Engine
from hf_rksp.training.monitors.spectrum import SpectralMonitor
from hf_rksp.training.recorder import Recorder
from hf_rksp.training.watch import Watch
from tests.training.common import Chain, token_rows

pytestmark = pytest.mark.timeout(300)
STEPS = 4


def breaks(model, rank, step):
    """In step 1 process 1 cannot read two layers, in step 2 process 0 can read none; in step 3 all is well."""
    pairs = {(1, 1): [(1, 2)], (0, 2): [(0, 1), (2, 3)]}.get((rank, step), [])
    for block in model.layers:
        block.before = block.after = lambda x: x
    for flattens, restores in pairs:
        model.layers[flattens].after = lambda y: y.flatten(0, 1)
        model.layers[restores].before = lambda x: x.unflatten(0, (-1, 9))


#: Schedule, and whether the step is surveyed.
WAYS = (("balanced", False), ("paper", False), ("balanced", True))


def worker(rank, port, out):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    ids = torch.stack([row["input_ids"] for row in token_rows(8).rows])[rank * 4 :][:4]
    seen = [run(rank, ids, *way) for way in WAYS]
    model = torch.nn.ModuleDict({"text": Chain(), "vision": Chain()})
    mine = [["text.layers"], ["vision.layers", "text.layers"]][rank]  # the batch of process 0 has no image
    stacks = found_anywhere(model, find_stacks(model, mine))
    seen.append([[stack.path, [block.path for block in stack.blocks]] for stack in stacks])
    with open(f"{out}/{rank}.json", "w") as file:
        json.dump(seen, file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # some builds abort at teardown, after the work is done


def run(rank, ids, schedule, exact):
    """Layers of the profile of each step, what monitor and KSS have skipped so far, KSS's loss, and what was dropped."""
    model, seen = Chain().train(), []
    monitor = SpectralMonitor(MonitorConfig(every=1, rank=8))
    kss = SpectralShaper(config=KSSConfig(schedule, rank=8, every=1, layer_fraction=1.0))
    engine = Engine(Watch(model, "layers"), [monitor, kss], Recorder())
    engine._main = True  # each process solves, so that both can be compared
    engine.begin(0, 100, {})
    for step in range(STEPS):
        breaks(model, rank, step)
        engine.step_begin(step)
        if exact:
            with kss.measure_step():
                model(ids)
        (model(ids, labels=ids)["loss"] + kss.term()).backward()
        indices = [layer["index"] for reading in engine.step_end() for layer in reading.layers]
        logs = engine.pop_logs()
        seen.append((indices, monitor.aside.count, logs["kss/skipped"], logs.get("kss/loss"), logs["kss/dropped"]))
    engine.close()
    return seen


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, str(folder)), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("way", range(len(WAYS)), ids=str)
def test_processes_agree(way, ranks):
    (one, other), exact = (rank[way] for rank in ranks), WAYS[way][1]
    for rank in (one, other):
        assert [row[0] for row in rank] == [[0, 1, 2, 3], [0, 3], [], [0, 1, 2, 3]]
        assert [row[1] for row in rank] == [0, 2, 6, 6]
    # What was solved is the same: the sums of both.
    assert [row[3] for row in one] == [row[3] for row in other]
    assert one[2][3] is None and all(one[step][3] is not None for step in (0, 1, 3))
    if not exact:
        assert [row[2] for row in one] == [row[2] for row in other] == [0, 2, 6, 6]
    assert one[-1][2] > 0 and other[-1][2] > 0 and one[-1][4] == other[-1][4] == 0


def test_what_one_process_finds_all_look_at(ranks):
    (one, other) = (rank[-1] for rank in ranks)
    assert one == other and [path for path, _ in one] == ["text.layers", "vision.layers"]
    assert [len(blocks) for _, blocks in one] == [4, 4]
