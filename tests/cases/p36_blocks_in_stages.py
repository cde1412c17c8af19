"""A user profiles image models whose blocks are grouped in stages: Hiera with 2, 3, 4, 2 blocks, CvT with 1, 2, 3.

What happens afterwards: all 11 and all 6 blocks are in the profile; or a warning or an error says which are not. A profile of
part of the blocks never passes for one of the model.
"""

from common import *


def main(expect):
    images = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    hiera = transformers.HieraConfig(embed_dim=16, image_size=[64, 64], depths=[2, 3, 4, 2], num_heads=[1, 2, 4, 8])
    cvt = transformers.CvtConfig(embed_dim=[16, 32, 32], depth=[1, 2, 3], num_heads=[1, 2, 2])
    for name, cls, config, blocks in (
        ("Hiera", transformers.HieraModel, hiera, 11),
        ("CvT", transformers.CvtModel, cvt, 6),
    ):
        seen = attempt(
            lambda cls=cls, config=config: profile(built(cls, config).eval(), {"pixel_values": images}, rank=4)
        )
        if seen.ran:
            expect(
                len(seen.value) == blocks or seen.warned("block", "stage"),
                f"{name}: {len(seen.value)} blocks of {blocks}, nothing said",
            )
        else:
            expect(seen.refused, f"{name}: {seen}")


run("P36", main)
