"""Profile a tiny model with all processes and save what came out: `shared_profile.py MODE FOLDER`."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed

from hf_rksp.errors import InputError
from hf_rksp.inputs import ModelSource, load_config
from hf_rksp.inputs.initialise import Initialiser, skeleton
from hf_rksp.profile import profile_model
from hf_rksp.profile.share import split

TINY = "n_layer=4,n_embd=48,n_head=2,vocab_size=128,n_positions=16"


class Stops(Initialiser):
    """Fails before the third block that it makes."""

    made = 0

    def make(self, block):
        if self.made == 2:
            raise KeyboardInterrupt
        super().make(block)
        self.made += 1


def main():
    mode, folder = sys.argv[1], Path(sys.argv[2])
    shared = "RANK" in os.environ
    rank = 0
    if shared:
        distributed.init_process_group("gloo")
        rank = distributed.get_rank()
    bare = skeleton(load_config(ModelSource(init="gpt2", config_overrides=TINY)), torch.float32)
    ids = torch.randint(0, 128, (12, 8), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": part} for part in ids.split(8)]  # of 8 and of 4: one each
    if shared:
        batches = split(batches)
    options = {"shared": shared, "groups": 4, "progress": False, "rank": 8}
    if mode == "parts":
        # One or two layers at a time, and each process has to part them alike.
        model = Initialiser(bare, 0).make_all()
        profile = profile_model(model, batches, moment_memory=4e5, **options)
    else:
        kind = Stops if mode == "stop" else Initialiser
        weights = kind(bare, 0)
        weights.make_rest()
        try:
            profile = profile_model(
                weights.model.eval(), batches, weights=weights, resume=folder / "state" if shared else None, **options
            )
        except (KeyboardInterrupt, InputError) as error:
            (folder / f"{mode}-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
            return
    torch.save(
        [[layer.spectral_radius, layer.nonlinearity_ratio] for layer in profile.layers], folder / f"{mode}-{rank}.pt"
    )


if __name__ == "__main__":
    try:
        main()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    # A thread of gloo that is late at the interpreter's end aborts the process ("terminate called without an active exception"),
    # on busy machines: what is tested is written by now.
    sys.stdout.flush()
    os._exit(0)
