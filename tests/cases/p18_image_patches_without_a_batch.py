"""A user profiles Qwen2-VL. Its image tower keeps all patches of all images in one tensor (patches, d), without a batch.

What happens afterwards: intervals come from images, not from patches: with 2 images no layer of the tower has a standard
error, as the text layers have none with 2 texts; with 16 images there may be some. The tower counts 16 patches an image.
"""

from common import *


def model():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = dict(
        SMALL,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rope_parameters=rope,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    image = dict(
        depth=3,
        embed_dim=32,
        hidden_size=32,
        num_heads=4,
        mlp_ratio=2,
        patch_size=4,
        temporal_patch_size=2,
        spatial_merge_size=2,
    )
    marks = dict(image_token_id=90, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93)
    return built(
        transformers.Qwen2VLForConditionalGeneration,
        transformers.Qwen2VLConfig(text_config=text, vision_config=image, **marks),
    ).eval()


def batch(n):
    """Texts with one image of 4 x 4 patches each, which are merged to 4 tokens."""
    draw = torch.Generator().manual_seed(0)
    x = ids(n, 24, 80)
    x[:, 1], x[:, 2:6], x[:, 6] = 92, 90, 93
    return {
        "input_ids": x,
        "attention_mask": torch.ones_like(x),
        "pixel_values": torch.randn(n * 16, 96, generator=draw),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * n),
        "mm_token_type_ids": (x == 90).long(),
    }


def main(expect):
    for n in (2, 16):
        seen = attempt(lambda n=n: profile(model(), batch(n), rank=8))
        if not expect(seen.ran, f"{n} images: {seen}"):
            continue
        tower = [layer for layer in seen.value if "visual" in layer.path]
        expect(len(tower) == 3 and set(tokens(tower)) == {16 * n}, f"{n} images: tower of {tokens(tower)} patches")
        if n == 2:
            given = [layer.path for layer in seen.value if layer.standard_errors]
            expect(not given, f"2 images: standard errors of {given}")


run("P18", main)
