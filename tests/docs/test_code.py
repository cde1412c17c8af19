"""What the documents tell users to type works: Python blocks run, commands parse, files and links are there."""

import re
import shlex

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_rksp.cli.main import build_parser, main
from tests.docs.common import DOCUMENTS, ROOT, commands, fenced, name

#: What makes a block fit for a test: small models, few steps.
SMALL = (
    "max_steps=2, use_cpu=True, report_to='none', save_strategy='no', disable_tqdm=True, per_device_train_batch_size=4"
)
SUBSTITUTIONS = {
    'ModelSource(init="gpt2")': 'ModelSource(init="gpt2", config_overrides="n_layer=2,n_embd=32,n_head=2")',
    'output_dir="run"': f'output_dir="run", {SMALL}',
    'output_dir="recorded"': f'output_dir="recorded", {SMALL}',
    'output_dir="accumulated"': f'output_dir="accumulated", {SMALL}',
}
#: Commands that take no time.
RUN = ("rksp env", "rksp zoo run zoo_reports/manifests/gpt2.json --dry-run")
WITH_PYTHON = [path for path in DOCUMENTS if fenced(path.read_text("utf-8"), "python")]
COMMANDS = [(path, command) for path in DOCUMENTS for command in commands(path.read_text("utf-8"))]
RKSP = [(path, command) for path, command in COMMANDS if re.search(r"(^|-m hf_)rksp ", command)]


def small():
    """The names that the documents take as given: a model of the reader and its data."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=64, n_positions=32, eos_token_id=0))
    ids = torch.randint(1, 64, (32, 32), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": row} for row in ids]
    batches = [{"input_ids": part} for part in ids.split(8)]
    loader = [{"input_ids": part, "labels": part} for part in ids.split(8)][:2]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return {"model": model, "data": data, "batches": batches, "loader": loader, "optimizer": optimizer}


def blocks(path):
    """The Python blocks of a document, at the size of a test."""
    for _, block in fenced(path.read_text("utf-8"), "python"):
        for old, new in SUBSTITUTIONS.items():
            block = block.replace(old, new)
        yield block


@pytest.mark.parametrize("path", WITH_PYTHON, ids=name)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "document", **small()}
    for block in blocks(path):
        exec(compile(block, name(path), "exec"), namespace)
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written & {"report.html", "rksp_report.html"}  # each document ends in a page


def test_every_substitution_is_needed():
    texts = "".join(path.read_text("utf-8") for path in WITH_PYTHON)
    assert [old for old in SUBSTITUTIONS if old not in texts] == []


def of_rksp(command):
    """The arguments of rksp in a command, launched by itself or by accelerate."""
    return shlex.split(re.split(r"(?:^|-m hf_)rksp ", command)[1].split("|")[0].split("&&")[0])


@pytest.mark.parametrize(("path", "command"), RKSP, ids=[command for _, command in RKSP])
def test_commands_of_rksp_parse(path, command):
    build_parser().parse_args(of_rksp(command))


@pytest.mark.parametrize("command", RUN)
def test_cheap_commands_run(command, monkeypatch):
    assert command in [typed for _, typed in RKSP]
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)[1:]) == 0


def test_files_and_targets_in_commands_are_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    missing = []
    for path, command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "make" and words[1] not in targets:
            missing.append((name(path), command))
        if words[0] in ("rksp", "python", "accelerate", "torchrun", ".venv/bin/python"):
            files = [word for word in words if re.fullmatch(r"[\w/-]+\.(py|yaml|json)", word) and "/" in word]
            missing += [(name(path), file) for file in files if not (ROOT / file).exists()]
    assert missing == []


def test_links_lead_somewhere():
    missing = []
    for path in DOCUMENTS:
        text = path.read_text("utf-8")
        targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
        for target in targets:
            file, _, anchor = target.partition("#")
            whole = (path.parent / file) if file else path
            headings = (
                re.findall(r"^#+ (.*)$", whole.read_text("utf-8"), re.MULTILINE) if anchor and whole.is_file() else []
            )
            anchors = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
            if not target.startswith("http") and (not whole.exists() or (anchor and anchor not in anchors)):
                missing.append((name(path), target))
    assert missing == []
