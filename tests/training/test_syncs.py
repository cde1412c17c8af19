"""How often a training step waits for the device: KSS once, however many layers; monitors between readings never."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_rksp import (
    AlignmentConfig,
    AlignmentMonitor,
    AttentionConfig,
    AttentionMonitor,
    CurvatureConfig,
    CurvatureMonitor,
    KSSConfig,
    SpectralShaper,
)
from hf_rksp.config import MonitorConfig
from hf_rksp.training import host
from hf_rksp.training.engine import Engine
from hf_rksp.training.monitors.spectrum import SpectralMonitor
from hf_rksp.training.recorder import Recorder
from hf_rksp.training.watch import Watch
from tests.training.common import gpt2, padded_rows

#: Operators that wait for a device, or run on the host what a device cannot.
WAITING = ("_local_scalar_dense", "nonzero", "linalg_eig", "is_nonzero")
SCHEDULES = pytest.mark.parametrize("schedule", ["balanced", "paper"])
#: KSS acts on every layer of the models here.
ACTS = {"every": 1, "rank": 8, "upper_threshold": 0.91, "layer_fraction": 1.0}


class Waits(TorchDispatchMode):
    """Counts operators that wait."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if any(part in name for part in WAITING):
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def batch(device="cpu"):
    rows = padded_rows(8).rows
    return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}


def waits_of(step):
    """Operators that wait, and moves to the host, in one call of ``step``."""
    before = host.moves
    with Waits() as waits:
        step()
    return waits.count, host.moves - before


def step_of(model, kss):
    def step():
        loss = model(**batch()).loss
        (loss + kss.term() if kss else loss).backward()

    return step


@SCHEDULES
@pytest.mark.parametrize("layers", [2, 6])
def test_kss_waits_once_per_pass_however_many_layers(schedule, layers):
    model = gpt2(dropout=0.0, n_layer=layers).train()
    plain, moved = waits_of(step_of(model, None))
    assert moved == 0
    with SpectralShaper(model, KSSConfig(schedule, **ACTS)) as kss:
        for _ in range(2):  # the first pass learns how the states are read
            found, moved = waits_of(step_of(model, kss))
            kss.step()
        assert found == plain and moved == 1
        assert kss.pop_logs()["kss/layers_above"] == 1  # it has acted


def test_the_count_means_something():
    """Planted: an item in the term of KSS is seen."""
    model = gpt2(dropout=0.0).train()
    plain, _ = waits_of(step_of(model, None))

    class Peeks(SpectralShaper):
        def term(self):
            return super().term() + float(torch.ones(1))

    with Peeks(model, KSSConfig("paper", **ACTS)) as kss:
        found, _ = waits_of(step_of(model, kss))
    assert sum(found.values()) > sum(plain.values())


@pytest.mark.parametrize("layers", [2, 6])
def test_a_monitor_waits_for_nothing_between_its_readings(layers):
    model = gpt2(dropout=0.0, n_layer=layers).train()
    plain, _ = waits_of(step_of(model, None))
    engine = Engine(Watch(model), [SpectralMonitor(MonitorConfig(every=10, rank=8))], Recorder())
    engine.begin(0, 100, {})
    for step in range(3):

        def whole(step=step):
            engine.step_begin(step)
            step_of(model, None)()
            engine.gradients_ready()
            engine.step_end()

        found, moved = waits_of(whole)
        assert (found == plain and moved == 0) == (step > 0)  # the first step has a reading
        assert bool(engine.readings) == (step == 0)
    engine.close()


MONITORS = {
    "alignment": lambda every: AlignmentMonitor(AlignmentConfig(every=every)),
    "attention": lambda every: AttentionMonitor(AttentionConfig(every=every)),
    "curvature": lambda every: CurvatureMonitor(CurvatureConfig(every=every)),
}


def reading_waits(name, layers, every, steps):
    """Waits beside those of the step itself, and moves to the host, in the last of some steps."""
    model = gpt2(dropout=0.0, n_layer=layers).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def whole(engine, step):
        engine.step_begin(step)
        step_of(model, None)()
        engine.gradients_ready()
        optimizer.step()
        engine.step_end()

    plain, _ = waits_of(lambda: whole(Engine(Watch(model), [], Recorder()), 0))
    watch = Watch(model)
    watch.optimizer = optimizer
    engine = Engine(watch, [MONITORS[name](every)], Recorder())
    engine.begin(0, 100, {})
    for step in range(steps):
        found, moved = waits_of(lambda step=step: whole(engine, step))
    assert bool(engine.readings) == ((steps - 1) % every == 0)
    engine.close()
    return sum(found.values()) - sum(plain.values()), moved


@pytest.mark.parametrize("name", MONITORS)
def test_no_monitor_waits_between_its_readings(name):
    assert reading_waits(name, 2, every=10, steps=3) == (0, 0)


@pytest.mark.parametrize(("name", "most", "moves"), [("alignment", 2, 1), ("attention", 2, 1), ("curvature", 26, 0)])
def test_a_reading_waits_equally_often_however_many_layers(name, most, moves):
    """One transfer has the numbers of all layers; a curvature reading of five products waits 26 times."""
    few, many = (reading_waits(name, layers, every=1, steps=3) for layers in (2, 6))
    assert few == many and few[0] <= most and few[1] == moves


@pytest.mark.gpu
@SCHEDULES
def test_a_step_on_a_device_waits_once(schedule):
    """torch's own detector of waits: everything but the one transfer raises."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = gpt2(dropout=0.0).cuda().train()
    moves = []

    def allowed(*tensors):
        torch.cuda.set_sync_debug_mode("default")
        try:
            moves.append(len(tensors))
            return host.to_host(*tensors)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    with SpectralShaper(model, KSSConfig(schedule, **ACTS)) as kss, pytest.MonkeyPatch.context() as patch:
        inputs = batch("cuda")
        (model(**inputs).loss + kss.term()).backward()
        kss.step()
        patch.setattr("hf_rksp.training.kss.shaper.to_host", allowed)
        # The model's own masks are asked for on the host; KSS alone is watched.
        inputs.pop("attention_mask")
        patch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)
        torch.cuda.set_sync_debug_mode("error")
        try:
            (model(**inputs).loss + kss.term()).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(moves) == 1
