"""Profile a vision transformer at initialisation on real images: CIFAR-10 as the Hub stores it, or any image table.

The images come from a parquet file or folder with an `img` column (here: uoft-cs/cifar10), or from the Hub by name.
"""

import argparse

import datasets
import numpy as np
import torch
from transformers import ViTConfig, ViTModel

from hf_rksp import assess, profile_model, write_report

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--images", default="uoft-cs/cifar10", help="parquet file, or dataset on the Hub")
parser.add_argument("--column", default="img")
parser.add_argument("--count", type=int, default=64, help="number of images")
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--width", type=int, default=192)
parser.add_argument("--out", default="vit_report")
args = parser.parse_args()

if args.images.endswith(".parquet"):
    table = datasets.load_dataset("parquet", data_files=args.images, split="train", streaming=True)
else:
    table = datasets.load_dataset(args.images, split="test", streaming=True)
pixels = [np.asarray(row[args.column].convert("RGB"), dtype=np.float32) for row in table.take(args.count)]
images = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5

torch.manual_seed(42)
model = ViTModel(
    ViTConfig(
        image_size=images.shape[-1],
        patch_size=4,
        num_hidden_layers=args.layers,
        hidden_size=args.width,
        num_attention_heads=3,
        intermediate_size=4 * args.width,
    )
)
# One batch a list entry; the first dimension is the sequence (here: the image) that the jackknife groups by.
batches = [{"pixel_values": part} for part in images.split(16)]
profile = profile_model(model, batches, source="initialised", setup_info={"images": args.images, "count": len(images)})
for layer in profile.layers:
    print(f"{layer.path}: near-unit mass {layer.near_unit_mass:.3f} over {layer.tokens} tokens")
print(f"by the paper's thresholds: {assess(profile).band}")
for path in write_report(profile, args.out).values():
    print(f"wrote {path}")
