"""Inputs of models that no general way fits: model type -> function of an `inputs.Maker`."""

from __future__ import annotations

from support.recipes_images import IMAGES
from support.recipes_sounds import SOUNDS
from support.recipes_texts import TEXTS

RECIPES = TEXTS | IMAGES | SOUNDS
