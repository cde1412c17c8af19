"""Hooks on the residual blocks of any model. Needs torch alone; models are known by their shape, not by import."""

from hf_rksp.capture.blocks import Block, Stack, find_stacks
from hf_rksp.capture.hooks import capture_transitions, untouched
from hf_rksp.capture.lockstep import Advance, lock_step
from hf_rksp.capture.masks import token_mask
from hf_rksp.capture.positions import left_padding_shifts_positions
from hf_rksp.capture.tap import TrainingTap, Transition

__all__ = [
    "Advance",
    "Block",
    "Stack",
    "TrainingTap",
    "Transition",
    "capture_transitions",
    "find_stacks",
    "left_padding_shifts_positions",
    "lock_step",
    "token_mask",
    "untouched",
]
