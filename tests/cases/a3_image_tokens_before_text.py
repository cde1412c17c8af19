"""A user fine-tunes GIT on captions of unequal length: the tokens of the image stand before the text, the mask is of the text.

What happens afterwards: RKSPTrainer trains as Trainer does. Padding never enters: no layer counts more than the image's 5 places
and the real tokens of each caption.
"""

from common import *


def make():
    image = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=16
    )
    return built(transformers.GitForCausalLM, transformers.GitConfig(vision_config=image, **SMALL))


def row(i):
    return text_row(20, 3)(i) | {"pixel_values": torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i))}


def main(expect):
    real = int(padded(8, 20, 3).sum())
    like_trainer(expect, "GIT, padded", make, row, {8 * 5, real, real + 8 * 5})


run("A3", main)
