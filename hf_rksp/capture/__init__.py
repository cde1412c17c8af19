"""Hooks on the residual blocks of any model. Needs torch alone; models are known by their shape, not by import."""

from hf_rksp.capture.blocks import Block, Stack, find_stacks, needs_probe, restore, unmarked, without
from hf_rksp.capture.calling import untouched
from hf_rksp.capture.hooks import capture_transitions
from hf_rksp.capture.layout import Layout
from hf_rksp.capture.layouts import Layouts, Unsettled
from hf_rksp.capture.lockstep import Advance, lock_step
from hf_rksp.capture.positions import left_padding_shifts_positions
from hf_rksp.capture.tap import TrainingTap, Transition

__all__ = [
    "Advance",
    "Block",
    "Layout",
    "Layouts",
    "Stack",
    "TrainingTap",
    "Transition",
    "Unsettled",
    "capture_transitions",
    "find_stacks",
    "left_padding_shifts_positions",
    "lock_step",
    "needs_probe",
    "restore",
    "unmarked",
    "untouched",
    "without",
]
