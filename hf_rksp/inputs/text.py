"""Real text, cut to distinct sequences of tokens.

Duplicate columns tell the regression nothing twice (the paper's prompt lists repeat 4 or 8 prompts), so every sequence
here is distinct. The default text is the Python installation's own language reference: English, on every machine.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_rksp.errors import InputError, cause_of
from hf_rksp.inputs.hub import hint, hub_or_cache
from hf_rksp.inputs.paths import as_path, is_there, written_like_a_path

logger = logging.getLogger(__name__)
BUILTIN = "builtin"
_TABLES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
#: Characters read per requested token. Real text has three to six per token, so this leaves a wide choice.
_CHARACTERS_PER_TOKEN = 64
_LEAST_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class TextSource:
    """Where the text comes from.

    Attributes:
        name: "builtin", a file, a folder, or a dataset on the Hub; ``$NAME`` stands for an environment variable.
        config, split, column: of a dataset.
    """

    name: str = BUILTIN
    config: str | None = None
    split: str = "validation"
    column: str = "text"

    @property
    def path(self) -> Path:
        """``name`` as a path."""
        return as_path(self.name)


def read_text(source: TextSource, tokens: int) -> str:
    """The beginning of the text, long enough for ``tokens`` tokens.

    Raises:
        InputError: nothing is there, it is no text, or it is empty.
    """
    limit = max(_LEAST_CHARACTERS, tokens * _CHARACTERS_PER_TOKEN)
    path = source.path
    if not source.name.strip():
        raise InputError(
            f"text={source.name!r} names nothing: pass a file, a folder, a dataset on the Hub or 'builtin'"
        )
    if source.name == BUILTIN:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics))
    elif is_there(path) and path.is_dir():
        text = _folder(path, source, limit)
    elif is_there(path):
        text = _file(path, source, limit)
    elif written_like_a_path(source.name) or len(source.name) > 200 or _is_link(path):
        raise InputError(
            f"text={source.name!r} does not exist: pass a file, a folder, a dataset on the Hub or 'builtin'"
        )
    else:
        text = _dataset(source.name, source, limit, streaming=True)
    if not text.strip():
        raise InputError(f"text={source.name!r} is empty: pass a file, folder or dataset with text")
    return text[:limit]


def _is_link(path: Path) -> bool:
    """Whether it is a link, to nothing or in a circle: no dataset on the Hub is meant."""
    return len(str(path)) < 4096 and path.is_symlink()


def _file(path: Path, source: TextSource, limit: int) -> str:
    if path.suffix in _TABLES:
        return _dataset(_TABLES[path.suffix], source, limit, data_files=str(path))
    try:
        with path.open(encoding="utf-8-sig") as stream:
            return stream.read(limit)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"text={str(path)!r} cannot be read as UTF-8 text: {error}; pass a text file") from None


def _folder(path: Path, source: TextSource, limit: int) -> str:
    files = _files_in(path)
    if any(file.suffix == ".parquet" for file in files):
        return _dataset("parquet", source, limit, data_files=_tables_of(path, source))
    parts, length = [], 0
    for file in files:
        if file.suffix in (".txt", ".md", ".rst", ".text", "") and length < limit:
            parts.append(_file(file, source, limit))
            length += len(parts[-1])
    if not parts:
        raise InputError(f"text={str(path)!r} holds no .txt, .md, .rst or .parquet file: pass a folder with text")
    return "\n\n".join(parts)


def _files_in(path: Path) -> list[Path]:
    return sorted(
        p
        for p in path.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
    )


def _tables_of(path: Path, source: TextSource) -> list[str]:
    """The parquet files of a folder that belong to the split."""
    tables = [p for p in _files_in(path) if p.suffix == ".parquet"]
    split = [str(p) for p in tables if source.split in p.name]
    if not split:
        raise InputError(
            f"split={source.split!r} is in the name of no parquet file of text={str(path)!r}: pass --text-split, or one of "
            f"{', '.join(p.name for p in tables[:5])}"
        )
    return split


def rows_of(source: TextSource, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of a table or a dataset, one by one.

    Raises:
        InputError: it is no table and no dataset, cannot be loaded, or lacks one of the columns.
    """
    path = source.path
    if is_there(path) and path.is_dir():
        yield from _rows("parquet", source, columns, data_files=_tables_of(path, source))
    elif is_there(path):
        if path.suffix not in _TABLES:
            raise InputError(f"text={source.name!r} has no columns: pass {', '.join(_TABLES)} or a dataset")
        yield from _rows(_TABLES[path.suffix], source, columns, data_files=str(path))
    elif written_like_a_path(source.name) or len(source.name) > 200 or _is_link(path):
        raise InputError(
            f"text={source.name!r} does not exist: pass a table, a folder with .parquet or a dataset on the Hub"
        )
    else:
        yield from _rows(source.name, source, columns, streaming=True)


def _rows(name: str, source: TextSource, columns: Sequence[str], **kwargs: Any) -> Iterator[Mapping[str, Any]]:
    import datasets

    on_hub = "data_files" not in kwargs
    split = source.split if on_hub else "train"
    try:
        with hub_or_cache(needed=on_hub):
            for row in datasets.load_dataset(name, source.config if on_hub else None, split=split, **kwargs):
                for column in columns:
                    if column not in row:
                        raise InputError(
                            f"column={column!r} is not in text={source.name!r}: choose among {', '.join(map(str, row))}"
                        )
                yield row
    except InputError:
        raise
    except Exception as error:  # datasets raises its own, huggingface_hub's, pyarrow's and requests' errors
        raise InputError(
            f"text={source.name!r} (config {source.config!r}, split {source.split!r}) cannot be loaded: "
            f"{cause_of(error)}{hint() if on_hub else ''}; pass a file, a folder, a dataset on the Hub (which needs a network) or "
            "'builtin'"
        ) from None


def _dataset(name: str, source: TextSource, limit: int, **kwargs: Any) -> str:
    parts, length, empty = [], 0, 0
    for row in _rows(name, source, (source.column,), **kwargs):
        if (value := row[source.column]) is None:
            empty += 1
            continue
        if isinstance(value, (list, dict)):
            raise InputError(
                f"column={source.column!r} of text={source.name!r} holds a {type(value).__name__}, {str(value)[:60]}...: pass a "
                "column of text, as apply_chat_template makes it of a conversation"
            )
        parts.append(str(value))
        length += len(parts[-1])
        if length >= limit:
            break
    if empty:
        which = f"{empty} rows of text={source.name!r} are" if empty > 1 else f"1 row of text={source.name!r} is"
        logger.warning("%s left out: there is no %s", which, source.column)
    return "".join(part if part.endswith("\n") else part + "\n" for part in parts)


@dataclass(frozen=True)
class Sequences:
    """Distinct sequences of equal length, shape ``(n, length)`` int64, and what to say of them in the report."""

    ids: torch.Tensor
    info: dict[str, Any]

    def batches(self, size: int) -> list[dict[str, torch.Tensor]]:
        """Batches with an ``attention_mask`` of ones."""
        return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in self.ids.split(size)]


def cut_sequences(text: str, tokenizer: Any, length: int, tokens: int, seed: int, source: TextSource) -> Sequences:
    """At least ``tokens`` tokens in distinct sequences of ``length``, drawn without order from all over the text.

    Special tokens that the tokenizer adds around a sequence are part of it, as in real use.

    Raises:
        InputError: the text is shorter than one sequence, or than ``tokens`` tokens of distinct sequences.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    some = text.strip()[:40]  # in the tokenizer's alphabet, as a letter that we make up may not be
    around = tokenizer(some, add_special_tokens=True)["input_ids"]
    bare = tokenizer(some, add_special_tokens=False)["input_ids"]
    before, after = _around(around, bare)
    inner = length - len(before) - len(after)
    if inner < 1:
        raise InputError(
            f"seq_len={length}: the tokenizer adds {length - inner} special tokens; pass at least {length - inner + 1}"
        )
    starts = range(0, len(ids) - inner + 1, inner)
    if not len(starts):
        raise InputError(
            f"text={source.name!r} has {len(ids)} tokens, fewer than one sequence of {inner}: pass longer text, "
            "or a smaller --seq-len"
        )
    distinct = sorted({tuple(ids[start : start + inner]) for start in starts})
    needed = -(-tokens // length)
    if len(distinct) < needed:
        raise InputError(
            f"text={source.name!r} has {len(distinct)} distinct sequences of {length} tokens, and tokens={tokens} needs {needed}: "
            f"pass more text, or --tokens {len(distinct) * length} or less"
        )
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))[:needed]
    rows = torch.tensor([[*before, *distinct[i], *after] for i in order.tolist()])
    return Sequences(rows, describe(source, rows, rows.numel()))


def describe(source: TextSource, rows: torch.Tensor, tokens: int) -> dict[str, Any]:
    """What a report says of sequences, shape ``(n, length)``; ``tokens`` counts those that are no padding."""
    return {
        "source": "pydoc_data.topics, the language reference of this Python" if source.name == BUILTIN else source.name,
        "config": source.config,
        "split": None if source.path.is_file() or source.name == BUILTIN else source.split,
        "sequences": len(rows),
        "sequence_length": rows.shape[1],
        "tokens": tokens,
        "distinct_tokens": int(rows.unique().numel()),
        "sha256": hashlib.sha256(rows.numpy().tobytes()).hexdigest(),
    }


def _around(full: list[int], bare: list[int]) -> tuple[list[int], list[int]]:
    """Special tokens before and after the text."""
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []
