"""A zoo of tiny models, run once."""

import json

import pytest

from hf_rksp.cli.main import main

TINY = "n_layer=3,n_embd=32,n_head=2,vocab_size=300,n_positions=64"
FAST = ["--groups", "4", "--tokens", "256", "--seq-len", "32"]


def model(**changes):
    """A model of a manifest."""
    return {
        "id": "tiny-gpt2-init",
        "title": "Tiny GPT-2 (init)",
        "family": "GPT-2",
        "source": "initialised",
        "licence": "none",
        "arguments": ["--init", "gpt2", "--config-overrides", TINY, *FAST],
        "seeds": [1, 2],
        "published": "gpt2-124m",
    } | changes


MODELS = [
    model(),
    model(id="wide-gpt2-init", title="Wide <b>GPT-2</b> | (init)", seeds=[1], published=None)
    | {"arguments": ["--init", "gpt2", "--config-overrides", TINY.replace("=32", "=48"), *FAST, "--stream"]},
    model(
        id="broken-init",
        title="Broken <b>x</b>",
        note="see <script>alert(1)</script>",
        family="Broken",
        seeds=[1],
        published=None,
    )
    | {"arguments": ["--init", "gpt2", "--config-overrides", "n_layer=none_such"]},
    model(id="gpt2", title="GPT-2, pretrained", source="pretrained", licence="MIT", seeds=[1], needs_hub=True)
    | {"arguments": ["openai-community/gpt2", "--revision", "0" * 40]},
]


@pytest.fixture(scope="session")
def run_zoo(tmp_path_factory):
    """Folder of the zoo, and the exit codes of running and rendering it."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "manifests").mkdir()
    manifest = folder / "manifests" / "tiny.json"
    manifest.write_text(json.dumps({"models": MODELS}))
    work = ["--work", str(folder.parent / "zoo-work")]
    codes = [main(["zoo", "run", str(manifest), "--folder", str(folder), "--quiet", *work])]
    codes.append(main(["zoo", "render", "--folder", str(folder), "--quiet"]))
    return folder, codes


@pytest.fixture(scope="session")
def zoo(run_zoo):
    """Folder of the zoo."""
    return run_zoo[0]
