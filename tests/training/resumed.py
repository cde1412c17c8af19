"""One run of `test_resume.py`, which kills itself: python -m tests.training.resumed FOLDER SETTINGS STEP."""

import json
import os
import signal
import sys

import torch
from transformers import Trainer, TrainerCallback

from hf_rksp import RKSPTrainer
from tests.training.common import gpt2, padded_rows, trainer


class Kill(TrainerCallback):
    """SIGKILL between two microbatches: nothing is flushed, closed or tidied up."""

    def __init__(self, step):
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make(folder, settings, callbacks=()):
    """Dropout, a shuffled sampler over two epochs, half of the layers drawn, padded text."""
    settings = dict(settings)
    kind = Trainer if settings.pop("plain", False) else RKSPTrainer
    base = {"max_steps": 12, "gradient_accumulation_steps": 2, "kss_layer_fraction": 0.5, "save_strategy": "steps"}
    return trainer(folder, gpt2(), padded_rows(64), kind, callbacks=list(callbacks), **(base | settings))


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(sys.argv[1], json.loads(sys.argv[2]), [Kill(int(sys.argv[3]))]).train()
