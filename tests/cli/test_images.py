"""``rksp audit --images``: what a vision model is shown, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_rksp.errors import InputError, ModelLoadError
from hf_rksp.inputs.images import ImageSource, load_image_processor, read_images

from .conftest import FAST, TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of 20 by 24 pixels, in the layout of ``imagefolder``."""
    place = tmp_path_factory.mktemp("pictures")
    drawn = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    for number, picture in enumerate(drawn):
        Image.fromarray(picture).save(place / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def config():
    from transformers import ViTConfig

    return ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=4
    )


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory):
    """A ViT with an image processor that scales by other numbers than ours."""
    from transformers import ViTImageProcessorPil, ViTModel

    place = tmp_path_factory.mktemp("models") / "vit"
    torch.manual_seed(0)
    ViTModel(config).save_pretrained(place)
    ViTImageProcessorPil(image_mean=[0.4] * 3, image_std=[0.2] * 3, size={"height": 32, "width": 32}).save_pretrained(
        place
    )
    return place


def read(folder, config, tokens=256, seed=42, processor=None):
    return read_images(ImageSource(str(folder), "train"), config, tokens, seed, processor)


def test_draw_is_of_the_seed_and_within_the_scale(folder, config):
    images = read(folder, config)
    assert images.pixels.shape == (4, 3, 32, 32) and images.pixels.dtype == torch.float32
    assert -1 <= float(images.pixels.min()) < -0.5 and 0.5 < float(images.pixels.max()) <= 1
    assert images.info["images"] == 4 and images.info["patches"] == 64
    assert read(folder, config).info == images.info
    assert read(folder, config, seed=1).info["sha256"] != images.info["sha256"]
    assert [part["pixel_values"].shape[0] for part in images.batches(3)] == [3, 1]


def test_image_processor_of_the_checkpoint_is_used(folder, config, checkpoint):
    processor = load_image_processor(str(checkpoint))
    plain, processed = read(folder, config), read(folder, config, processor=processor)
    # The same four pictures, resized alike up to the kind of interpolation, but with the checkpoint's mean and deviation.
    assert processed.pixels.shape == plain.pixels.shape
    middle = ((plain.pixels.mean() + 1) / 2 - 0.4) / 0.2
    assert float(processed.pixels.mean()) == pytest.approx(float(middle), abs=0.02)
    assert processed.info["scaling"].endswith("of the model") and plain.info["scaling"] == "bicubic, to [-1, 1]"


def test_checkpoint_without_an_image_processor(tmp_path, config):
    config.save_pretrained(tmp_path)
    assert load_image_processor(str(tmp_path)) is None
    assert load_image_processor(None) is None


def test_broken_image_processor_is_no_missing_one(tmp_path, config):
    config.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{half")
    with pytest.raises(ModelLoadError, match=r"the image processor of model=.* cannot be loaded"):
        load_image_processor(str(tmp_path))


def test_processor_for_another_size_is_refused(folder, config):
    from transformers import ViTImageProcessorPil

    with pytest.raises(
        InputError, match=r"makes pixels of shape \(3, 16, 16\), and its configuration says image_size=32"
    ):
        read(folder, config, processor=ViTImageProcessorPil(size={"height": 16, "width": 16}))


def test_too_few_pictures(folder, config):
    with pytest.raises(InputError, match="has 12 images, and tokens=10000 needs 157"):
        read(folder, config, tokens=10_000)


@pytest.mark.parametrize(("size", "patch"), [([32, 32], 4), (32, 64)])
def test_sizes_that_are_no_square_of_patches(folder, config, size, patch):
    from transformers import ViTConfig

    with pytest.raises(InputError, match="patch"):
        read(folder, ViTConfig(image_size=size, patch_size=patch))


def test_audit_of_a_checkpoint(rksp, tmp_path, folder, checkpoint):
    code, out, _ = rksp(
        "audit", checkpoint, "--images", folder, "--image-split", "train", "--out", tmp_path / "r", *FAST
    )
    assert code == 0 and "by the paper's thresholds:" in out
    setup = json.loads((tmp_path / "r/report.json").read_text())["profile"]["setup"]
    assert setup["images"]["images"] == 8 and setup["images"]["scaling"] == "ViTImageProcessorPil of the model"
    page = (tmp_path / "r/report.md").read_text()
    assert "ViTImageProcessorPil" in page


def test_images_for_a_text_model_are_refused(rksp, folder):
    code, _, err = rksp("audit", "--init", "gpt2", "--config-overrides", TINY, "--images", folder, *FAST)
    assert code == 2 and "takes no images; leave --images out" in err


def test_a_model_of_text_and_images_without_a_table_of_tokens_is_refused(rksp, tmp_path):
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = tmp_path / "clip.json"
    config.write_text(
        json.dumps(
            {"model_type": "clip", "text_config": tower, "vision_config": {**tower, "image_size": 8, "patch_size": 4}}
        )
    )
    code, _, err = rksp("audit", "--init", config, "--out", tmp_path / "r", *FAST)
    assert code == 2 and "takes text and images, and `rksp audit` feeds text: call hf_rksp.profile_model" in err
