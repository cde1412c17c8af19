"""A user fine-tunes Speech2Text on padded clips: the mask counts frames before two convolutions, the states come after them.

What happens afterwards: RKSPTrainer trains as Trainer does, measured on the real frames or with one warning that the encoder is
left out.
"""

from common import *


def make():
    config = transformers.Speech2TextConfig(
        vocab_size=99,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        input_feat_per_channel=16,
        conv_channels=32,
    )
    return built(transformers.Speech2TextForConditionalGeneration, config)


def row(i):
    draw = torch.Generator().manual_seed(i)
    mask = (torch.arange(80) < 80 - 15 * (i % 4)).long()
    return {
        "input_features": torch.randn(80, 16, generator=draw),
        "attention_mask": mask,
        "labels": ids(1, 20, seed=i)[0],
    }


def main(expect):
    like_trainer(expect, "Speech2Text", make, row)
    only_watched(expect, "Speech2Text", make, row)


run("A2", main)
