"""A user fine-tunes wav2vec2 with padded clips: the mask counts samples, the states are frames.

What happens afterwards: a profile counts the frames that are not padding, or all frames with a note; RKSPTrainer trains as
Trainer does, also at the first padded batch.
"""

from common import *

LENGTHS = [16000 - 2500 * (i % 4) for i in range(8)]


def model():
    config = transformers.Wav2Vec2Config(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        mask_time_prob=0.0,
        layerdrop=0.0,
        ctc_zero_infinity=True,
        pad_token_id=0,
    )
    return built(transformers.Wav2Vec2ForCTC, config)


def row(i):
    draw = torch.Generator().manual_seed(i)
    mask = (torch.arange(16000) < LENGTHS[i % 8]).long()
    clip = torch.randn(16000, generator=draw) * mask
    return {"input_values": clip, "attention_mask": mask, "labels": torch.randint(1, 31, (8,), generator=draw)}


def main(expect):
    net = model()
    batch = {k: v for k, v in default_data_collator([row(i) for i in range(8)]).items() if k != "labels"}
    frames = int(net._get_feat_extract_output_lengths(batch["attention_mask"].sum(1)).sum())
    every = 8 * int(net._get_feat_extract_output_lengths(torch.tensor(16000)))
    seen = attempt(lambda: set(tokens(profile(net.eval(), batch))))
    good = seen.ran and (seen.value == {frames} or (seen.value == {every} and seen.warned()))
    expect(good, f"profile: {seen}, {seen.value}; {frames} frames of {every} are real")
    like_trainer(expect, "wav2vec2, padded", model, row)
    only_watched(expect, "wav2vec2, padded", model, row)


run("P07", main)
