"""The runner keeps results and failures, skips what is there, and stops what takes too much memory."""

import json
import re
import subprocess
import sys

import pytest
from filelock import FileLock

from hf_rksp.cli.main import main
from hf_rksp.cli.zoo import AUDIT
from hf_rksp.errors import InputError
from hf_rksp.zoo import RunnerOptions, read_manifest, run_manifest, runner
from hf_rksp.zoo.runner import plan
from hf_rksp.zoo.shelf import shortened
from tests.zoo.conftest import MODELS


def manifest_of(zoo):
    return read_manifest(zoo / "manifests" / "tiny.json")


def test_results_failures_and_exit_code(run_zoo):
    zoo, codes = run_zoo
    assert codes == [1, 0]  # one of the models is broken
    whole = json.loads((zoo / "tiny-gpt2-init" / "report.json").read_text())
    assert len(whole["profile"]["layers"]) == 3 and whole["profile"]["layers"][0]["eigenvalues"]
    assert (
        whole["profile"]["setup"]["command"].endswith("--seed 1") and "json" not in whole["profile"]["setup"]["command"]
    )
    slim = json.loads((zoo / "tiny-gpt2-init" / "seed-2.json").read_text())
    assert (
        "eigenvalues" not in slim["profile"]["layers"][0]
        and slim["profile"]["aggregates"] != whole["profile"]["aggregates"]
    )
    assert not (zoo / "tiny-gpt2-init" / "seed-1.json").exists()
    failure = json.loads((zoo / "failures" / "broken-init-1.json").read_text())
    assert failure["exit_code"] == 2 and "n_layer" in failure["error"] and failure["command"].startswith("rksp audit")
    assert not (zoo / "gpt2" / "report.json").exists()
    assert not list((zoo.parent / "zoo-work").rglob("*"))  # a streamed audit that is whole leaves no state


def test_the_same_as_the_command_that_the_page_gives(zoo, tmp_path):
    """Whatever the runner does, a reader who types the command gets the same layers."""
    whole = json.loads((zoo / "wide-gpt2-init" / "report.json").read_text())
    command = manifest_of(zoo).models[1].command(1).split()[1:]
    assert main([*command, "--quiet", "--json", str(tmp_path / "r.json")]) == 0
    assert shortened(json.loads((tmp_path / "r.json").read_text()))["profile"]["layers"] == whole["profile"]["layers"]


def test_done_is_skipped_and_the_hub_is_asked_for(zoo, capsys):
    states = [(job.model.id, job.seed, job.state) for job in plan(manifest_of(zoo), RunnerOptions(zoo))]
    assert states == [
        ("tiny-gpt2-init", 1, "done"),
        ("tiny-gpt2-init", 2, "done"),
        ("wide-gpt2-init", 1, "done"),
        ("broken-init", 1, "to run"),
        ("gpt2", 1, "skipped"),
    ]
    assert plan(manifest_of(zoo), RunnerOptions(zoo, with_hub=True))[-1].state == "to run"
    before = {path: path.stat().st_mtime_ns for path in zoo.rglob("*")}
    assert main(["zoo", "run", str(zoo / "manifests" / "tiny.json"), "--folder", str(zoo), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"tiny-gpt2-init +1 +done +4 GiB +[\d.]+ s ", out)
    assert "to run" in out and f"rksp audit openai-community/gpt2 --revision {'0' * 40} --seed 1" in out
    assert before == {path: path.stat().st_mtime_ns for path in zoo.rglob("*")}


def test_only_size_and_seeds(zoo):
    manifest = manifest_of(zoo)
    chosen = lambda **options: [(j.model.id, j.seed) for j in plan(manifest, RunnerOptions(zoo, **options))]  # noqa: E731
    assert chosen(only=("gpt2",)) == [("gpt2", 1)]
    assert chosen(size="tiny") == [("tiny-gpt2-init", 1), ("tiny-gpt2-init", 2)]
    assert chosen(size="tiny", seeds=1) == [("tiny-gpt2-init", 1)]
    with pytest.raises(InputError, match=r"only='gpt9' is not in .*choose among tiny-gpt2-init"):
        chosen(only=("gpt9",))
    with pytest.raises(InputError, match="size='9t' is part of no id"):
        chosen(size="9t")
    with pytest.raises(InputError, match="memory_cap_gib=-1"):
        RunnerOptions(zoo, memory_cap_gib=-1)


def test_memory_cap(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"models": [MODELS[0] | {"seeds": [1]}]}))
    options = RunnerOptions(tmp_path, memory_cap_gib=0.05, work=tmp_path / "work", quiet=True)
    said = []
    assert run_manifest(read_manifest(path), options, AUDIT, said.append) == (0, 1)
    failure = json.loads((tmp_path / "failures" / "tiny-gpt2-init-1.json").read_text())
    assert failure["error"] == (
        "stopped: it took more than memory_cap_gib=0.05; raise --memory-cap, or add --stream to its arguments"
    )
    assert failure["exit_code"] == -9 and not (tmp_path / "tiny-gpt2-init" / "report.json").exists()
    # Without the cap it goes through, and the failure is gone.
    assert run_manifest(read_manifest(path), RunnerOptions(tmp_path, work=tmp_path / "work"), AUDIT, said.append) == (
        1,
        0,
    )
    assert not list((tmp_path / "failures").iterdir())


def test_another_command_makes_a_result_stale(zoo, tmp_path):
    (tmp_path / "tiny-gpt2-init").mkdir()
    for name in ("report.json", "seed-2.json"):
        (tmp_path / "tiny-gpt2-init" / name).write_bytes((zoo / "tiny-gpt2-init" / name).read_bytes())
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"models": [MODELS[0] | {"arguments": [*MODELS[0]["arguments"], "--rank", "4"]}]}))
    assert [job.state for job in plan(read_manifest(path), RunnerOptions(tmp_path))] == ["stale", "stale"]


def test_again_measures_anew(zoo, tmp_path, capsys):
    place = tmp_path / "tiny-gpt2-init"
    place.mkdir()
    for name in ("report.json", "seed-2.json"):
        (place / name).write_bytes((zoo / "tiny-gpt2-init" / name).read_bytes())
    old = json.loads((place / "report.json").read_text())
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"models": [MODELS[0]]}))
    command = f"zoo run {path} --folder {tmp_path} --work {tmp_path / 'w'} --seeds 1 --quiet".split()
    assert main(command) == 0 and "0 audits done, 1 already had results" in capsys.readouterr().out
    assert main([*command, "--again"]) == 0
    out = capsys.readouterr().out
    assert "1 audits done, 0 already had results" in out and "  high" in out
    new = json.loads((place / "report.json").read_text())
    assert (
        new["profile"]["layers"] == old["profile"]["layers"]
        and new["profile"]["cost"]["seconds"] != old["profile"]["cost"]["seconds"]
    )


def test_again_that_fails_keeps_the_result_and_says_so(zoo, tmp_path, capsys):
    place = tmp_path / "tiny-gpt2-init"
    place.mkdir()
    report = json.loads((zoo / "tiny-gpt2-init" / "report.json").read_text())
    broken = MODELS[0] | {"arguments": ["--init", "gpt2", "--config-overrides", "n_layer=none_such"], "seeds": [1]}
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"models": [broken]}))
    report["profile"]["setup"]["command"] = read_manifest(path).models[0].command(1)  # as if it had been done
    (place / "report.json").write_text(json.dumps(report))
    command = f"zoo run {path} --folder {tmp_path} --work {tmp_path / 'w'} --quiet --again".split()
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "0 audits done, 0 already had results, 1 failed" in out
    assert "failed" in out.splitlines()[2] and "GiB" not in out
    assert json.loads((place / "report.json").read_text()) == report


def test_a_result_that_did_not_reach_the_shelf_is_put_there(zoo, tmp_path, monkeypatch):
    """Its run ended between the audit and the shelf; one of another command does not count."""
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"models": [MODELS[0] | {"seeds": [1]}]}))
    manifest = read_manifest(path)
    left = json.loads((zoo / "tiny-gpt2-init" / "report.json").read_text())
    place = tmp_path / "w" / "tiny-gpt2-init-1.json"
    place.parent.mkdir()
    audits = []
    monkeypatch.setattr(runner, "watched", lambda *args: audits.append(args) or (1, ["no"], False))
    options = RunnerOptions(tmp_path, work=place.parent)
    own = manifest.models[0].command(1)
    for command, audited in ((f"{own}0 --json x", 1), (f"{own} --json x", 0)):
        left["profile"]["setup"]["command"] = command
        place.write_text(json.dumps(left))
        assert run_manifest(manifest, options, AUDIT, print) == (1 - audited, audited)
    shelved = json.loads((tmp_path / "tiny-gpt2-init" / "report.json").read_text())
    assert shelved["profile"]["layers"] == left["profile"]["layers"] and shelved["profile"]["setup"]["command"] == own
    assert len(audits) == 1 and not place.exists() and not list((tmp_path / "failures").iterdir())


def test_again_leaves_alone_what_another_run_is_at_work_on(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"models": [MODELS[1], MODELS[0] | {"seeds": [1]}]}))
    work = tmp_path / "w" / "wide-gpt2-init-1"
    work.mkdir(parents=True)
    options = RunnerOptions(tmp_path, again=True, work=work.parent, quiet=True)
    with FileLock(work / "lock"):
        assert run_manifest(read_manifest(path), options, AUDIT, print) == (1, 1)  # the next one goes on
    failure = json.loads((tmp_path / "failures" / "wide-gpt2-init-1.json").read_text())
    assert "another profile is at work in it" in failure["error"]


def test_again_asks_for_the_hub_too(zoo, tmp_path):
    (tmp_path / "gpt2").mkdir()
    report = json.loads((zoo / "tiny-gpt2-init" / "report.json").read_text())
    (tmp_path / "gpt2" / "report.json").write_text(json.dumps(report))
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"models": [MODELS[-1]]}))
    states = [
        plan(read_manifest(path), RunnerOptions(tmp_path, again=True, with_hub=hub))[0].state for hub in (False, True)
    ]
    assert states == ["skipped", "stale"]


@pytest.mark.parametrize(
    ("code", "tail", "said"),
    [
        (2, ["rksp: cutting ...", "rksp: error: rank='x'", "later"], "rksp: error: rank='x'"),
        (1, ["Traceback", "KeyError: 'h'", "rksp: this is a defect; please report it"], "KeyError: 'h'"),
        (2, ["rksp: note: few tokens", "rksp audit: error: argument --groups"], "rksp audit: error: argument --groups"),
        (
            -9,
            ["rksp: profiling ..."],
            "killed by SIGKILL; if memory ran out, free some, or add --stream to its arguments",
        ),
        (3, ["rksp: profiling ..."], "exit code 3 without an error message"),
    ],
)
def test_why_an_audit_ended(code, tail, said):
    assert runner.reason(code, tail, False, 0.0) == said


CHILD = """
import sys, time
from tqdm import tqdm
print("rksp: profiling ...", file=sys.stderr, flush=True)
for leave in (True, False):
    with tqdm(total=3, desc="profiling é", unit="layer", leave=leave, mininterval=0) as bar:
        for _ in range(3):
            bar.update()
print("rksp: error: 3 it/s is no rank", file=sys.stderr, flush=True)
tqdm(total=3, mininterval=0).update()
sys.exit(2)
"""


def test_progress_bars_are_shown_and_not_stored(capsys):
    """Bars that stay, bars that are erased, and one that the end cuts short; words of bars in an error do not matter."""
    code, tail, capped = runner.watched([sys.executable, "-c", CHILD], 0.0)
    assert (code, capped) == (2, False)
    assert list(tail) == ["rksp: profiling ...", "rksp: error: 3 it/s is no rank"]
    assert runner.reason(code, tail, capped, 0.0) == "rksp: error: 3 it/s is no rank"
    shown = capsys.readouterr().err
    assert "\rprofiling é:" in shown and shown.count("rksp: error: 3 it/s is no rank\n") == 1


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("plain", "plain"),
        ("plain\r", "plain"),
        ("\rbar 10%\rbar 20%", ""),
        ("\rbar 10%\r        \rafter", "after"),
        ("\rbar 10%\r        \r", ""),
        ("", ""),
    ],
)
def test_lines_without_bars(line, text):
    assert runner._without_bar(line) == text


@pytest.mark.parametrize("family", ["gpt2", "llama2", "moe", "mamba", "kan", "vit"])
def test_scripts(family):
    script = [sys.executable, f"scripts/audit_{family}.py", "--dry-run"]
    out = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert out.count("rksp audit --init") >= 6
