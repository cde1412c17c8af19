"""A user profiles and trains LayoutLMv3 on padded documents: 24 places of text, then 17 of the page image, in one stream. The
mask speaks of the text alone.

What happens afterwards: the real tokens of the text and all places of the image are counted; RKSPTrainer trains as Trainer does.
"""

from common import *


def config():
    return transformers.LayoutLMv3Config(
        **{**SMALL, "num_hidden_layers": 2},
        max_position_embeddings=64,
        input_size=32,
        patch_size=8,
        coordinate_size=5,
        shape_size=6,
        max_2d_position_embeddings=64,
        pad_token_id=1,
    )


def row(i):
    x, mask = ids(1, 24, seed=i)[0], (torch.arange(24) < 24 - 3 * (i % 4)).long()
    box = torch.zeros(24, 4, dtype=torch.long)
    box[:, 2:] = 5
    page = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i))
    labels = torch.where(mask.bool(), x % 2, -100)
    return {
        "input_ids": torch.where(mask.bool(), x, 1),
        "attention_mask": mask,
        "bbox": box,
        "pixel_values": page,
        "labels": labels,
    }


def main(expect):
    batch = {k: v for k, v in default_data_collator([row(i) for i in range(8)]).items() if k != "labels"}
    real = int(batch["attention_mask"].sum()) + 8 * 17
    seen = attempt(lambda: set(tokens(profile(built(transformers.LayoutLMv3Model, config()).eval(), batch))))
    expect(seen.ran and seen.value == {real}, f"profile: {seen}, {seen.value}, real {real}")
    make = lambda: built(transformers.LayoutLMv3ForTokenClassification, config())
    like_trainer(expect, "LayoutLMv3, padded", make, row, {real})


run("P45", main)
