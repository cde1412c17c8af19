"""Profile a model in memory: six layers of GPT-2 at initialisation on the Python language reference."""

import argparse

from hf_rksp import assess, profile_model, write_report
from hf_rksp.inputs import InputOptions, ModelSource, prepare

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="gpt2_report", help="folder of the report")
parser.add_argument("--layers", type=int, default=6)
parser.add_argument("--width", type=int, default=384)
args = parser.parse_args()

source = ModelSource(init="gpt2", config_overrides=f"n_layer={args.layers},n_embd={args.width}")
prepared = prepare(source, InputOptions(tokens=2048))

# From here on any model and any batches do: model(**batch) has to run.
profile = profile_model(prepared.model, prepared.batches(8), source="initialised", setup_info=prepared.setup)

for layer in profile.layers:
    low, high = layer.intervals["near_unit_mass"]
    print(
        f"{layer.path}: near-unit mass {layer.near_unit_mass:.3f} [{low:.3f}, {high:.3f}], radius {layer.spectral_radius:.2f}"
    )
print(f"by the paper's thresholds: {assess(profile).band}")
for path in write_report(profile, args.out).values():
    print(f"wrote {path}")
