"""A user audits a CANINE folder: its tokenizer turns characters into their numbers, and the model has no table of tokens.

What happens afterwards: a profile, with the model's own tokenizer.
"""

from common import *


def main(expect):
    path, out = Path(tempfile.mkdtemp()), tempfile.mkdtemp()
    config = transformers.CanineConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        num_hash_buckets=512,
        local_transformer_stride=32,
    )
    built(transformers.CanineModel, config).save_pretrained(path)
    transformers.CanineTokenizer().save_pretrained(path)
    done = rksp("audit", path, "--tokens", 1024, "--groups", 0, "--out", out, "--formats", "json", "--quiet")
    if expect(done.code == 0, done.last):
        expect("Canine" in tokenizer_of(report(out)), f"tokenizer: {tokenizer_of(report(out))[:100]}")


run("P38", main)
