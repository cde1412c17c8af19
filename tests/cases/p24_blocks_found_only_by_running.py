"""A user trains MPNet, CTRL or SqueezeBERT, whose blocks are no GradientCheckpointingLayer: ``profile_model`` finds them by running
the model once.

What happens afterwards: RKSPTrainer finds what ``profile_model`` finds, and trains MPNet and CTRL as Trainer does. Where nothing
can be measured (SqueezeBERT calls its layers past the hooks) it refuses before the first step naming ``kss``, or trains with a
warning. RKSPCallback beside a plain Trainer leaves the run alone.
"""

from common import *


def mpnet():
    return built(transformers.MPNetForMaskedLM, transformers.MPNetConfig(**SMALL, max_position_embeddings=128))


def ctrl():
    config = transformers.CTRLConfig(vocab_size=99, n_positions=64, n_embd=32, dff=64, n_layer=3, n_head=4)
    return built(transformers.CTRLLMHeadModel, config)


def squeezebert():
    groups = {f"{name}_groups": 1 for name in ("q", "k", "v", "post_attention", "intermediate", "output")}
    return built(
        transformers.SqueezeBertForMaskedLM, transformers.SqueezeBertConfig(**SMALL, embedding_size=32, **groups)
    )


def row(i):
    return {"input_ids": ids(1, 32, seed=i)[0], "labels": ids(1, 32, seed=i)[0]}


def main(expect):
    for name, make in (("MPNet", mpnet), ("CTRL", ctrl)):
        done = like_trainer(expect, name, make, row)
        if done:
            expect(done.measured, f"{name}: nothing was measured")
    seen = attempt(lambda: train(RKSPTrainer, squeezebert(), row))
    good = (seen.ran and seen.warned()) or (seen.refused and "kss" in seen.text.lower())
    expect(good, f"SqueezeBERT: {seen}")
    only_watched(expect, "MPNet", mpnet, row)
    only_watched(expect, "SqueezeBERT", squeezebert, row)


run("P24", main)
