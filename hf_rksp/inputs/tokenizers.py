"""The model's own tokenizer, or a byte-level BPE trained on the spot on the text that is profiled."""

from __future__ import annotations

from typing import Any

from hf_rksp.errors import ModelLoadError, first_line


def load_tokenizer(source: str | None, text: str, vocab_size: int, **kwargs: Any) -> tuple[Any, str]:
    """A tokenizer and where it comes from, in words for the report.

    Args:
        source: folder or Hub id of the model or of ``--tokenizer``; ``None`` for a model that has none here.
        text: what to train on if ``source`` has no tokenizer.
        vocab_size: of the model; a trained tokenizer stays within it.
        kwargs: ``required=True`` makes a missing tokenizer an error; the rest goes to ``AutoTokenizer``.
    """
    required = kwargs.pop("required", False)
    if source is not None:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **kwargs)
            if _can_read(tokenizer, text[:2000]):
                return tokenizer, f"{type(tokenizer).__name__} of {source}"
        except Exception as error:
            if required:
                raise ModelLoadError(
                    f"tokenizer={source!r} cannot be loaded: {first_line(error)}; pass a folder or Hub id that holds tokenizer.json"
                ) from None
    tokenizer = train_byte_level_bpe(text, vocab_size)
    return (
        tokenizer,
        f"byte-level BPE of {len(tokenizer)} tokens, trained on this text because the model has no tokenizer here",
    )


def _can_read(tokenizer: Any, sample: str) -> bool:
    """Whether there is a vocabulary behind it: for a folder with a bare config.json, transformers makes an empty one."""
    return len(set(tokenizer(sample, add_special_tokens=False)["input_ids"])) > len(set(sample)) // 4


def train_byte_level_bpe(text: str, vocab_size: int) -> Any:
    """A ``PreTrainedTokenizerFast`` of at most ``vocab_size`` tokens; the same text gives the same tokenizer.

    A vocabulary below 256 cannot hold every byte: then the bytes that occur most are kept and the rest is left out.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if vocab_size >= 512 else []
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(alphabet),
        limit_alphabet=min(vocab_size, 256),
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
