"""Options that several commands share: which model, which text, machine-readable output."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from hf_rksp.cli import exit_codes

#: Tokens that are read, unless an option says otherwise.
_TOKENS = 2048


def new_parser(commands: Any, name: str, summary: str, description: str, example: str) -> argparse.ArgumentParser:
    """Add a subcommand; its --help ends with an example and the exit codes."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, 79),
        epilog=f"example:\n  {example}\n\n{exit_codes.EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is loaded."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="Hub id, local folder (safetensors, sharded or not; PEFT adapter) or .gguf file",
    )
    group.add_argument(
        "--init",
        metavar="CONFIG",
        help="use random weights instead of MODEL, for this configuration: a preset (gpt2, gpt2-medium, llama-2-7b, ...), a Hub "
        "id, a folder or a config.json",
    )
    group.add_argument(
        "--config-overrides", metavar="KEY=VALUE,...", help="change the configuration of --init, as in run_clm.py"
    )
    group.add_argument(
        "--seed",
        type=int,
        default=42,
        help="seed for the random weights and for choosing the text passages (default: 42)",
    )
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
        help="dtype of the weights (default: the checkpoint's own; float32 for --init)",
    )
    group.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1, mps, or auto to spread the model over all (default: cpu)"
    )
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit on the Hub")
    group.add_argument(
        "--base-model",
        metavar="MODEL",
        help="base model of a PEFT adapter, if the one named in the adapter is not available",
    )
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run code from the model's repository (default: off)"
    )
    group.add_argument(
        "--blocks",
        action="append",
        metavar="PATH",
        help="module path of the list of residual blocks, if they are not found automatically; can be given several times",
    )


def add_untrained(group: argparse._ActionsContainer) -> None:
    """Whether a checkpoint was saved before the first training step; see `check_untrained`."""
    group.add_argument(
        "--untrained",
        action="store_true",
        help="treat MODEL as untrained (default: a checkpoint is assumed to be trained)",
    )


def check_untrained(args: argparse.Namespace) -> None:
    """Raises:
    InputError: ``--untrained`` together with ``--init``.
    """
    if args.untrained and args.init:
        from hf_rksp.errors import InputError

        raise InputError(f"init={args.init!r} means random weights, which are untrained: leave --untrained out")


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Which text, and how it is divided into sequences."""
    group = parser.add_argument_group("text")
    add_text_source(group)
    group.add_argument(
        "--tokens", type=int, default=_TOKENS, help="tokens to profile on (default: 2048, as in the paper)"
    )
    group.add_argument("--batch-size", type=int, default=8, help="sequences per batch (default: 8)")


def add_text_source(group: argparse._ActionsContainer) -> None:
    """Which text, its tokenizer, and the length of a sequence."""
    group.add_argument(
        "--text",
        default="builtin",
        metavar="SOURCE",
        help="text file, folder, .parquet/.jsonl/.csv, or a dataset on the Hub (default: the language reference of this Python)",
    )
    group.add_argument(
        "--text-config", metavar="NAME", help="configuration of the dataset, for example wikitext-103-v1"
    )
    group.add_argument(
        "--text-split", default="validation", metavar="SPLIT", help="split of the dataset (default: validation)"
    )
    group.add_argument(
        "--text-column", default="text", metavar="NAME", help="column that holds the text (default: text)"
    )
    group.add_argument(
        "--tokenizer", metavar="MODEL", help="folder or Hub id of the tokenizer, if different from the model"
    )
    group.add_argument("--seq-len", type=int, default=128, help="tokens per sequence (default: 128)")


def add_output_options(parser: argparse._ActionsContainer) -> None:
    """Machine-readable output, and no progress."""
    add_json_option(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_json_option(parser: argparse._ActionsContainer) -> None:
    """Machine-readable output."""
    parser.add_argument(
        "--json", metavar="FILE", help="write the result as JSON to FILE; - writes it to stdout, and nothing else"
    )


def model_source(args: argparse.Namespace) -> Any:
    """The `ModelSource` for these options."""
    from hf_rksp.inputs import ModelSource

    return ModelSource(
        model=args.model,
        init=args.init,
        config_overrides=args.config_overrides,
        seed=args.seed,
        dtype=args.dtype,
        device=args.device,
        revision=args.revision,
        base_model=args.base_model,
        trust_remote_code=args.trust_remote_code,
    )


def text_options(args: argparse.Namespace, batch_size: int | None = None) -> Any:
    """The `InputOptions` for these options; ``batch_size`` if the option of that name means another batch."""
    from hf_rksp.inputs import InputOptions, TextSource

    return InputOptions(
        source=TextSource(args.text, args.text_config, args.text_split, args.text_column),
        tokens=getattr(args, "tokens", _TOKENS),
        batch_size=args.batch_size if batch_size is None else batch_size,
        seq_len=args.seq_len,
        seed=args.seed,
        tokenizer=args.tokenizer,
    )


def formats(args: argparse.Namespace) -> tuple[str, ...]:
    """The formats that ``--formats`` lists.

    Raises:
        InputError: one is unknown, or there is none.
    """
    from hf_rksp.errors import InputError
    from hf_rksp.report import FORMATS

    listed = tuple(part.strip() for part in args.formats.split(",") if part.strip())
    if not listed or set(listed) - set(FORMATS):
        raise InputError(f"formats={args.formats!r}: pass a list of {', '.join(FORMATS)}")
    return listed
