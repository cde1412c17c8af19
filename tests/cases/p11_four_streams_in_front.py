"""A user profiles Gemma 3n. Its residual state has four streams in front: (4, batch, tokens, d).

What happens afterwards: 16 texts of 32 tokens are 512 tokens in each layer, or the model is refused with an error that says why
it cannot be measured. The streams are never taken for texts. RKSPTrainer trains padded batches as Trainer does.
"""

from common import *


def config():
    return transformers.Gemma3nTextConfig(
        vocab_size=99,
        vocab_size_per_layer_input=99,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        num_hidden_layers=10,
        num_kv_shared_layers=5,
        layer_types=(["sliding_attention"] * 4 + ["full_attention"]) * 2,
        activation_sparsity_pattern=[0.0] * 10,
        intermediate_size=[64] * 10,
        laurel_rank=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def main(expect):
    make = lambda: built(transformers.Gemma3nForCausalLM, config())
    x, mask = ids(16, 32), padded(16, 32, 4)
    for name, m in (("no padding", torch.ones_like(x)), ("padded", mask)):
        batch = {"input_ids": x * m, "attention_mask": m}
        seen = attempt(lambda batch=batch: set(tokens(profile(make().eval(), batch))))
        real = int(m.sum())
        good = (seen.ran and seen.value == {real}) or (seen.refused and "without padding" not in seen.text)
        expect(good, f"{name}: {seen}, counted {seen.value}, real {real}")
    like_trainer(expect, "Gemma 3n, padded", make, text_row(32, 3), {8 * 32 - 2 * 18})


run("P11", main)
