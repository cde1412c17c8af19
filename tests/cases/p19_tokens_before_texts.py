"""A user profiles FSMT on padded texts. Its states are (tokens, batch, d), the mask is (batch, tokens).

What happens afterwards: 24 texts of 24 tokens give the same numbers in one batch of 24 and in two of 12, because each token is
held against its own place in the mask; 2 texts have no standard errors. An error that says the layout cannot be read is right
too. RKSPTrainer trains it, or refuses before the first step naming ``kss``.
"""

from common import *


def config():
    return transformers.FSMTConfig(
        langs=["en", "de"],
        src_vocab_size=99,
        tgt_vocab_size=99,
        d_model=32,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        pad_token_id=1,
    )


def batch(n, mask):
    return {
        "input_ids": torch.where(mask.bool(), ids(n, 24), 1),
        "attention_mask": mask,
        "decoder_input_ids": ids(n, 24, seed=1),
    }


def row(i):
    x, mask = ids(1, 24, seed=i)[0], (torch.arange(24) < 24 - 2 * (i % 8)).long()
    return {"input_ids": torch.where(mask.bool(), x, 1), "attention_mask": mask, "labels": ids(1, 24, seed=i + 99)[0]}


def main(expect):
    net = built(transformers.FSMTModel, config()).eval()
    whole = batch(24, padded(24, 24, 2, 8))
    halves = [{key: value[part] for key, value in whole.items()} for part in (slice(0, 12), slice(12, 24))]

    def encoder(batches):
        layers = [layer for layer in profile(net, batches) if layer.path.startswith("encoder")]
        return [(layer.tokens, round(layer.spectral_radius, 4)) for layer in layers]

    one, two = attempt(lambda: encoder([whole])), attempt(lambda: encoder(halves))
    if one.ran or two.ran:
        expect(one.ran and two.ran and one.value == two.value, f"one batch: {one} {one.value}; two: {two} {two.value}")
    else:
        expect(one.refused and two.refused, f"one batch: {one}; two: {two}")
    few = attempt(
        lambda: [bool(layer.standard_errors) for layer in profile(net, batch(2, torch.ones(2, 24, dtype=torch.long)))]
    )
    expect(
        few.refused or (few.ran and not any(few.value)),
        f"2 texts: {few}, standard errors of {sum(few.value or [])} layers",
    )
    seen = attempt(lambda: train(RKSPTrainer, built(transformers.FSMTForConditionalGeneration, config()), row))
    expect(seen.ran or (seen.refused and "kss" in seen.text.lower()), f"RKSPTrainer: {seen}")


run("P19", main)
