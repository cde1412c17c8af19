"""A user profiles PVTv2 (an image pyramid of four stages with two blocks each) and PatchTST (time series, states of (batch,
channels, patches, d)) without naming blocks.

What happens afterwards: the 8 blocks and the 3 blocks are found, and every patch of every channel counts.
"""

from common import *


def main(expect):
    draw = torch.Generator().manual_seed(0)
    pvt = transformers.PvtV2Config(
        hidden_sizes=[16, 32, 32, 64], depths=[2, 2, 2, 2], num_attention_heads=[1, 2, 4, 4], image_size=64
    )
    images = {"pixel_values": torch.randn(16, 3, 64, 64, generator=draw)}
    seen = attempt(lambda: tokens(profile(built(transformers.PvtV2Model, pvt).eval(), images, rank=4)))
    expect(seen.ran and len(seen.value) == 8, f"PVTv2: {seen}, {seen.value}")
    tst = transformers.PatchTSTConfig(
        num_input_channels=3,
        context_length=64,
        patch_length=8,
        patch_stride=8,
        d_model=32,
        num_attention_heads=4,
        ffn_dim=64,
        num_hidden_layers=3,
    )
    series = {"past_values": torch.randn(16, 64, 3, generator=draw)}
    seen = attempt(lambda: tokens(profile(built(transformers.PatchTSTModel, tst).eval(), series)))
    expect(seen.ran and seen.value == [16 * 3 * 8] * 3, f"PatchTST: {seen}, {seen.value}")


run("P39", main)
