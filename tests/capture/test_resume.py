"""A streamed profile that was stopped goes on at the block where it stopped, and ends with the same numbers to the bit."""

import json
import math

import pytest
import torch
from filelock import FileLock

from hf_rksp.errors import InputError, OutputError
from hf_rksp.inputs import ModelSource, load_model
from hf_rksp.inputs.initialise import Initialiser, skeleton
from hf_rksp.profile import profile_model
from hf_rksp.profile.resume import Resume, discard
from hf_rksp.profile.share import Share
from hf_rksp.report import profile_to_dict
from tests.capture import models

NAMES = ["gpt2", "llama", "mixtral", "mamba", "bert", "t5", "bart"]


class Stopped(Exception):
    """The machine goes down."""


class Stops(Initialiser):
    """Fails before a given block, and counts the blocks that were made."""

    def __init__(self, *args, before=None):
        super().__init__(*args)
        self.before, self.made = before, []

    def make(self, block):
        if len(self.made) == self.before:
            raise Stopped
        super().make(block)
        self.made.append(block.path)


def run(name, folder=None, before=None, seed=5, groups=0):
    case = models.CASES[name]
    weights = Stops(skeleton(case.build().config, torch.float32), seed, before=before)
    weights.make_rest()
    batches = [case.batch(4, seed) for seed in range(3)]
    try:
        profile = profile_model(
            weights.model.eval(),
            batches,
            rank=2,
            groups=groups,
            moment_memory=1,
            weights=weights,
            resume=folder,
            model_info={"seed": seed},
            progress=False,
        )
    except Stopped:
        return weights, None
    return weights, profile_to_dict(profile)


def numbers(report):
    return {name: report[name] for name in ("layers", "aggregates", "thirds")}


@pytest.mark.parametrize("name", NAMES)
def test_goes_on_where_it_stopped(name, tmp_path):
    whole_weights, whole = run(name)
    blocks = whole_weights.made
    for before in range(1, len(blocks)):
        folder = tmp_path / str(before)
        first, nothing = run(name, folder, before)
        assert nothing is None and first.made == blocks[:before]
        second, report = run(name, folder)
        assert second.made == blocks[before:]
        assert numbers(report) == numbers(whole)
        third, again = run(name, folder)  # its report was not written: the state is still there
        assert third.made == [] and numbers(again) == numbers(whole)
        discard(folder)
        assert not folder.exists()


def test_stopped_again_and_again(tmp_path):
    whole = run("gpt2", groups=4)[1]
    for _ in whole["layers"]:
        weights, report = run("gpt2", tmp_path / "work", before=1, groups=4)
        assert len(weights.made) == 1
    assert numbers(report) == numbers(whole)
    assert math.isfinite(report["cost"]["seconds"]["profile"])


def test_another_model_is_refused(tmp_path):
    run("gpt2", tmp_path / "work", before=1)
    with pytest.raises(
        InputError, match=r"left by another profile .it differs in model, weights.: pass another folder"
    ):
        run("gpt2", tmp_path / "work", seed=6)


def test_a_broken_state_is_refused(tmp_path):
    run("gpt2", tmp_path / "work", before=1)
    (tmp_path / "work" / "state.pt").write_bytes(b"half")
    with pytest.raises(InputError, match=r"state.pt cannot be read .* delete it to begin anew"):
        run("gpt2", tmp_path / "work")
    error = None
    try:
        run("gpt2", tmp_path / "work")
    except InputError as caught:
        error = caught
    (tmp_path / "work" / "state.pt").unlink()
    # What it says helps at once, also where the traceback is still held, as a notebook does.
    assert error is not None and run("gpt2", tmp_path / "work")[1] is not None


def test_a_folder_in_use_is_refused(tmp_path):
    run("gpt2", tmp_path / "work", before=1)
    with FileLock(tmp_path / "work" / "lock"), pytest.raises(InputError, match=r"another profile is at work in it"):
        run("gpt2", tmp_path / "work")
    with FileLock(tmp_path / "work" / "lock"), pytest.raises(InputError, match=r"another profile is at work in it"):
        discard(tmp_path / "work")
    assert (tmp_path / "work" / "state.pt").is_file()
    assert run("gpt2", tmp_path / "work")[1] is not None
    discard(tmp_path / "work")
    assert not (tmp_path / "work").exists()
    discard(tmp_path / "work")  # nothing there


def test_a_full_disk_of_another_process_stops_this_one_and_harms_nothing(tmp_path):
    class TwoProcesses(Share):
        def gather(self, value):
            return [value, "No space left on device"]

    kept = Resume(tmp_path)
    kept.open({})
    kept.save({"forward": 1.0}, Share())
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
        kept.save({"forward": 2.0}, TwoProcesses())
    kept.close()
    assert (tmp_path / "state.pt").read_bytes() == before and not list(tmp_path.glob(".rksp-*"))


def test_needs_streaming(tmp_path):
    with pytest.raises(InputError, match=r"resume=.* needs weights="):
        profile_model(models.CASES["gpt2"].build(), [models.CASES["gpt2"].batch(4, 0)], resume=tmp_path)


def test_a_checkpoint_that_was_replaced_is_refused(tmp_path):
    """The same folder, other weights: the states of the old ones must not go into the new ones."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.CASES["llama"].build().save_pretrained(tmp_path / "model")
        loaded = load_model(ModelSource(model=str(tmp_path / "model"), stream=True))
        found.append(json.dumps(loaded.weights.identity()))
    assert found[0] != found[1] and "model.safetensors" in found[0]
