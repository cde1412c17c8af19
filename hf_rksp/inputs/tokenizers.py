"""The model's own tokenizer, or, for random weights alone, a byte-level BPE trained on the text that is profiled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rksp.errors import ModelLoadError, cause_of
from hf_rksp.inputs.damage import damage
from hf_rksp.inputs.hub import hint, hub_or_cache
from hf_rksp.inputs.paths import is_there

#: Characters of the text that a tokenizer is tried on.
_SAMPLE = 4000
#: Of the visible characters of the sample, the share that has to come back from the ids. A tokenizer of another alphabet,
#: or without a vocabulary, gives back next to nothing; what falls short of `_WHOLE` is said.
_READS, _WHOLE = 0.5, 0.9
#: Files that a tokenizer is made of, by the beginnings and the endings of their names.
_BEGINNINGS = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "tekken", "special_tokens", "added_tokens")
_ENDINGS = (".model", ".spm", ".tiktoken", ".vocab", ".codes")


@dataclass(frozen=True)
class TokenizerPlace:
    """Where a tokenizer lies: folder or Hub id, and the GGUF file in that folder that holds it, if one does."""

    path: str
    gguf: str | None = None

    @property
    def files(self) -> list[Path] | None:
        """The files of a tokenizer in a folder; ``None`` where nobody can look: on the Hub."""
        folder = Path(self.path)
        if not (is_there(folder) and folder.is_dir()):
            return None
        if self.gguf:
            return [folder / self.gguf]
        return sorted(file for file in folder.iterdir() if file.name.startswith(_BEGINNINGS) or file.suffix in _ENDINGS)

    def __str__(self) -> str:
        return str(Path(self.path) / self.gguf) if self.gguf else self.path


class _Unreadable(Exception):
    """Why a tokenizer cannot be used."""


class _Absent(_Unreadable):
    """There is none."""


def load_tokenizer(
    source: TokenizerPlace | str | None, text: str, vocab_size: int, *, substitute: bool = False, **kwargs: Any
) -> tuple[Any, str]:
    """A tokenizer and where it comes from, in words for the report.

    Args:
        source: where it lies, folder or Hub id; ``None`` for a model that has none.
        text: has to be in its alphabet, and is what a substitute is trained on.
        vocab_size: of the model; a trained tokenizer stays within it.
        substitute: the weights are random, so any tokenizer will do where ``source`` has none that can be read. Trained
            weights are never fed by another tokenizer than their own.
        kwargs: go to ``AutoTokenizer``.

    Raises:
        ModelLoadError: there is none, or it cannot be loaded, or it does not read ``text``; the message has the cause.
    """
    why = "the model comes with no tokenizer"
    if source is not None:
        place = TokenizerPlace(source) if isinstance(source, str) else source
        try:
            return read_tokenizer(place, text, **kwargs)
        except _Absent as error:
            if not substitute:
                raise ModelLoadError(f"{error}: pass --tokenizer with the folder or Hub id that holds it") from None
        except _Unreadable as error:
            if not substitute:
                raise ModelLoadError(str(error)) from None
            why = f"the model's own tokenizer could not be used: {error}"
    tokenizer = train_byte_level_bpe(text, vocab_size)
    return tokenizer, f"byte-level BPE of {len(tokenizer)} tokens, trained on this text: {why}"


def read_tokenizer(place: TokenizerPlace, text: str, **kwargs: Any) -> tuple[Any, str]:
    """The tokenizer that lies there, and its name for the report."""
    from transformers import AutoTokenizer

    files = place.files
    for file in files or ():
        if broken := damage(file):
            raise _Unreadable(f"the tokenizer {str(place)!r} cannot be loaded: {file.name} {broken}")
    if place.gguf:
        kwargs["gguf_file"] = place.gguf
    try:
        with hub_or_cache(needed=files is None):
            tokenizer = AutoTokenizer.from_pretrained(place.path, **kwargs)
    except Exception as error:  # of json, tokenizers (bare Exception), sentencepiece, the Hub, code from the repository
        if files == []:
            raise _Absent(f"{str(place)!r} holds no tokenizer") from None
        if "trust_remote_code" in str(error):
            remedy = "its code lies in the repository: read it, then pass --trust-remote-code"
        else:
            remedy = "mend or copy its files again, or pass --tokenizer with a folder or Hub id of the same tokenizer"
        raise _Unreadable(
            f"the tokenizer {str(place)!r} cannot be loaded: {cause_of(error)}{hint() if files is None else ''}; {remedy}"
        ) from None
    name = type(tokenizer).__name__
    if files == [] and getattr(tokenizer, "vocab_files_names", None):
        # Only one that is code alone (bytes, characters) needs no files; for others transformers makes an empty vocabulary.
        raise _Absent(f"{str(place)!r} holds no tokenizer")
    share = share_read(tokenizer, text[:_SAMPLE])
    if share < _READS:
        raise _Unreadable(
            f"the tokenizer {name} of {str(place)!r} reads {share:.0%} of the text: pass --text in the model's own alphabet "
            f"({_alphabet(tokenizer)}), or --tokenizer if it is another model's"
        )
    return tokenizer, f"{name} of {place}" + (f"; it reads {share:.0%} of the text" if share < _WHOLE else "")


def share_read(tokenizer: Any, sample: str) -> float:
    """Of the visible characters of ``sample``, the share that the ids still hold: unknown ones and lost ones count as not read."""
    ids = tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"]
    known = [token for token in ids if token != getattr(tokenizer, "unk_token_id", None)]
    visible = _visible(sample)
    if not known or not visible:
        return 0.0
    try:
        back = tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    except Exception:  # a tokenizer from a repository may have no way back; its ids then have to do
        return len(known) / len(ids)
    return min(1.0, _visible(back) / visible)


def _visible(text: str) -> int:
    return sum(not character.isspace() for character in text)


def _alphabet(tokenizer: Any) -> str:
    """A few of its tokens, for a reader who wonders what it reads."""
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    try:
        known = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    except Exception:  # not every tokenizer can list its tokens
        known = []
    some = [token for token, _ in known[:5000] if token not in special][:12]
    return f"tokens such as {' '.join(some)}" if some else "it has no tokens of its own"


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
