"""What the cases share: small models, small data, a way to run them, and a way to read what came out.

Every name of hf_rksp that may be renamed is used in this file alone, in the section "Names". A case calls `run(name, main)`;
``main`` is given ``expect(condition, what was seen)``, and may call it as often as it likes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

import hf_rksp
from hf_rksp import KSSConfig, MonitorConfig, RKSPCallback, RKSPTrainer, RkspError

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

# --- Names ------------------------------------------------------------------------------------------------------------

#: Of a row of the history: its kind, and the kind of a profile.
KIND, PROFILE = "kind", "reading"
#: What the logs of a run call a number of KSS, and one of the monitor.
KSS_LOG, MONITOR_LOG = "kss/", ("spectrum/", "monitor/")
#: Words of the product in its warnings.
OWN_WORDS = re.compile(r"rksp|kss|spectr|monitor|profil|attention_mask|padding|residual", re.I)


def kss(**values: Any) -> KSSConfig:
    """Settings of KSS."""
    return KSSConfig(**values)


def monitor(every: int = 2, **values: Any) -> MonitorConfig:
    """Settings of the monitor: a profile at the first step, the last, and at each ``every``-th."""
    return MonitorConfig(every=every, **values)


def watcher(every: int = 2, **values: Any) -> RKSPCallback:
    return RKSPCallback(monitor(every, **values))


def profile(model: torch.nn.Module, batches: Any, rank: Any = 8, **values: Any) -> list[Any]:
    """The layers of a profile; each has ``path``, ``index``, ``tokens``, ``spectral_radius``, ``standard_errors``."""
    batches = [batches] if isinstance(batches, (dict, torch.Tensor)) else batches
    return list(hf_rksp.profile_model(model, batches, rank=rank, progress=False, **values).layers)


def tokens(layers: list[Any]) -> list[int]:
    return [layer.tokens for layer in layers]


def history(folder: str | Path) -> list[dict[str, Any]]:
    """All rows that the monitor left in the folder of a run."""
    rows = []
    for file in sorted(Path(folder).glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def profiles(folder: str | Path) -> list[dict[str, Any]]:
    """The profiles among them; ``["layers"]`` is a list of layers."""
    return [row for row in history(folder) if row.get(KIND) == PROFILE and isinstance(row.get("layers"), list)]


def counted(folder: str | Path) -> set[int]:
    """Tokens that the layers of the profiles of a run were made of."""
    found = set()
    for row in profiles(folder):
        for layer in row["layers"]:
            found.add(int(layer.get("tokens", row.get("tokens", -1))))
    return found


def rksp(*arguments: Any, env: dict[str, str] | None = None, seconds: float = 100) -> Command:
    """Run the command line."""
    done = subprocess.run(
        [sys.executable, "-m", "hf_rksp.cli.main", *map(str, arguments)],
        capture_output=True,
        timeout=seconds,
        env={**os.environ, **(env or {})},
    )
    return Command(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def report(folder: str | Path) -> dict[str, Any]:
    """What ``rksp audit --out FOLDER`` wrote: ``["layers"]`` has ``path``, ``tokens``, ``spectral_radius``."""
    return json.loads(next(Path(folder).rglob("report.json")).read_text(encoding="utf-8"))["profile"]


def load(folder: str | Path) -> torch.nn.Module:
    """The model of a folder, loaded as ``rksp audit FOLDER`` loads it."""
    from hf_rksp.inputs import ModelSource
    from hf_rksp.inputs.models import load_model

    return load_model(ModelSource(model=str(folder))).model


def tokenizer_of(written: dict[str, Any]) -> str:
    """What a report says of the tokenizer."""
    return str(written["setup"]["tokenizer"])


#: What an error says that sends its reader to the argument ``blocks``.
BLOCKS = re.compile(r"blocks=|--blocks|_blocks\b")


# --- Outcomes ---------------------------------------------------------------------------------------------------------


@dataclass
class Command:
    code: int
    out: str
    err: str

    @property
    def crashed(self) -> bool:
        """An error that nobody foresaw."""
        return self.code != 0 and ("Traceback" in self.err or "defect" in self.err.lower())

    @property
    def refused(self) -> bool:
        return self.code != 0 and not self.crashed

    @property
    def last(self) -> str:
        lines = [line for line in (self.err.strip() or self.out).splitlines() if line.strip()]
        return f"exit {self.code}: {lines[-1].strip()[:260] if lines else ''}"


@dataclass
class Outcome:
    """``kind``: "ran", "refused" (an error of the product's own) or "crashed" (any other error)."""

    kind: str
    value: Any = None
    text: str = ""
    said: list[str] = field(default_factory=list)

    @property
    def ran(self) -> bool:
        return self.kind == "ran"

    @property
    def refused(self) -> bool:
        return self.kind == "refused"

    def warned(self, *words: str) -> bool:
        """Whether something was said that has one of the words (any, without words)."""
        return any(not words or any(word.lower() in text.lower() for word in words) for text in self.said)

    @property
    def repeated(self) -> bool:
        """Whether one sentence came more than twice."""
        return any(self.said.count(text) > 2 for text in self.said)

    def __str__(self) -> str:
        return "ran" if self.ran else f"{self.kind}: {self.text[:230]}"


def attempt(function: Any) -> Outcome:
    """Run it, and keep what it said: warnings, the log of the package, and standard error."""
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("hf_rksp")
    log.addHandler(handler)
    errors = io.StringIO()
    outcome = Outcome("ran")
    try:
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(errors):
            warnings.simplefilter("default")
            try:
                outcome.value = function()
            except RkspError as error:
                outcome = Outcome("refused", text=f"{type(error).__name__}: {error}")
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                outcome = Outcome("crashed", text=f"{type(error).__name__}: {error} ({where})")
    finally:
        log.removeHandler(handler)
    own = [str(w.message) for w in caught if "hf_rksp" in w.filename or OWN_WORDS.search(str(w.message))]
    shown = [line for line in errors.getvalue().splitlines() if OWN_WORDS.search(line) and line not in records]
    outcome.said = own + records + shown
    return outcome


def run(name: str, main: Any) -> None:
    """Run a case: one last line ``PASS name`` or ``FAIL name: what was seen``, and 0 or 1 for the shell."""
    seen: list[str] = []

    def expect(condition: Any, what: str) -> bool:
        if not condition:
            seen.append(" ".join(str(what).split()))
        return bool(condition)

    try:
        main(expect)
    except Exception as error:
        traceback.print_exc()
        seen.append(f"the case itself broke: {type(error).__name__}: {str(error)[:200]}")
    print(f"FAIL {name}: {' | '.join(seen)}" if seen else f"PASS {name}", flush=True)
    sys.exit(1 if seen else 0)


# --- Models and data --------------------------------------------------------------------------------------------------

#: Sizes of a small BERT and its kin.
SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def llama(head: bool = True, **values: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{
            **SMALL,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **values,
        }
    )
    return (transformers.LlamaForCausalLM if head else transformers.LlamaModel)(config)


def gpt2(head: bool = True, **values: Any) -> torch.nn.Module:
    """Without dropout."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **{
            "vocab_size": 99,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 256,
            "pad_token_id": 0,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **values,
        }
    )
    return (transformers.GPT2LMHeadModel if head else transformers.GPT2Model)(config)


def built(cls: Any, config: Any) -> torch.nn.Module:
    """The same weights each time."""
    torch.manual_seed(0)
    return cls(config)


def ids(n: int = 8, length: int = 32, vocab: int = 99, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, vocab, (n, length), generator=torch.Generator().manual_seed(seed))


def padded(n: int, length: int, less: int, every: int = 4) -> torch.Tensor:
    """A mask of ``(n, length)``: text i lacks ``less * (i % every)`` tokens at its end."""
    return torch.stack([(torch.arange(length) < length - less * (i % every)).long() for i in range(n)])


class Rows(torch.utils.data.Dataset):
    def __init__(self, make: Any, n: int = 64) -> None:
        self.make, self.n = make, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


def text_row(length: int = 32, less: int = 0, vocab: int = 99) -> Any:
    """Rows of text, padded on the right by up to ``3 * less`` tokens."""

    def row(i: int) -> dict[str, torch.Tensor]:
        x, mask = ids(1, length, vocab, seed=i)[0], (torch.arange(length) < length - less * (i % 4)).long()
        return {"input_ids": x * mask, "attention_mask": mask, "labels": torch.where(mask.bool(), x, -100)}

    return row


# --- Training ---------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    trainer: Any
    folder: str

    @property
    def steps(self) -> int:
        return self.trainer.state.global_step

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.trainer.state.log_history if "loss" in row]

    @property
    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.trainer.model.parameters()])

    def logged(self, start: str | tuple[str, ...]) -> set[str]:
        return {key for row in self.trainer.state.log_history for key in row if key.startswith(start)}

    @property
    def measured(self) -> bool:
        """Whether KSS or the monitor has measured anything in it."""
        return bool(profiles(self.folder)) or any("loss" in key for key in self.logged(KSS_LOG))


def train(
    cls: Any,
    model: Any,
    row: Any,
    *,
    collate: Any = default_data_collator,
    callbacks: Any = (),
    folder: str | None = None,
    given: dict[str, Any] | None = None,
    resume: str | None = None,
    n: int = 64,
    every: int | None = 2,
    **values: Any,
) -> Run:
    """Train ``cls(model)`` for 5 steps of 8 rows in their order; ``given``: more arguments of the trainer, ``values``: of its settings.

    A trainer of the package is watched each ``every`` steps (None: as it comes).
    """
    folder = folder or tempfile.mkdtemp()
    settings = TrainingArguments(
        **{
            "output_dir": folder,
            "max_steps": 5,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "train_sampling_strategy": "sequential",
            **values,
        }
    )
    given = dict(given or {})
    if cls is not Trainer and issubclass(cls, hf_rksp.RKSPTrainerMixin) and every is not None:
        given.setdefault("monitor", monitor(every))
    data = row if not callable(row) else Rows(row, n)
    trainer = cls(model, settings, train_dataset=data, data_collator=collate, callbacks=list(callbacks), **given)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(resume_from_checkpoint=resume)
    return Run(trainer, folder)


def like_trainer(expect: Any, what: str, make: Any, row: Any, allowed: Any = None, **values: Any) -> Run | None:
    """RKSPTrainer with its defaults trains what Trainer trains: to the last step, from the same first loss, finite.

    It measures, or it says in a warning that it does not. ``allowed``: token counts that a profile of a batch may have.
    """
    plain = attempt(lambda: train(Trainer, make(), row, **values))
    if not plain.ran:
        raise RuntimeError(f"Trainer itself does not train {what}: {plain}")
    ours = attempt(lambda: train(RKSPTrainer, make(), row, **values))
    if not expect(ours.ran, f"{what}: Trainer trains, RKSPTrainer {ours}"):
        return None
    a, b = plain.value, ours.value
    expect(b.steps == a.steps, f"{what}: {b.steps} steps of {a.steps}")
    expect(
        math.isclose(a.losses[0], b.losses[0], rel_tol=2e-3),
        f"{what}: first loss {b.losses[0]}, Trainer's {a.losses[0]}",
    )
    expect(all(map(math.isfinite, b.losses)), f"{what}: losses {b.losses}")
    expect(b.measured or ours.warned(), f"{what}: nothing was measured, and nothing was said")
    expect(not ours.repeated, f"{what}: the same warning again and again: {ours.said[:3]}")
    if allowed is not None:
        wrong = counted(b.folder) - set(allowed)
        expect(not wrong, f"{what}: profiles of {sorted(wrong)} tokens, real {sorted(set(allowed))[:12]}")
    return b


def only_watched(expect: Any, what: str, make: Any, row: Any, **values: Any) -> None:
    """RKSPCallback beside a plain Trainer changes nothing: the run is Trainer's to the bit."""
    plain = train(Trainer, make(), row, **values)
    seen = attempt(lambda: train(Trainer, make(), row, callbacks=[watcher()], **values))
    if expect(seen.ran, f"{what}: RKSPCallback stops a plain Trainer, {seen}"):
        expect(torch.equal(plain.weights, seen.value.weights), f"{what}: RKSPCallback has changed the weights")
        expect(seen.value.measured or seen.warned(), f"{what}: nothing was measured, and nothing was said")


# --- Folders for the command line -------------------------------------------------------------------------------------

#: A small model for ``--init``.
ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 514,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def config_file(values: dict[str, Any], name: str = "config.json") -> Path:
    path = Path(tempfile.mkdtemp(), name)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def english() -> str:
    """Text that every Python carries."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics))


def own_tokenizer(size: int = 600) -> Any:
    """A byte-level tokenizer with the special tokens of RoBERTa."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(english()[:300_000].splitlines(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        unk_token="<unk>",
    )
