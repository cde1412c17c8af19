"""check, compare, report, env, and the help of every command."""

import json

import pytest

from hf_rksp.cli.main import build_parser

from .conftest import FAST, TINY

COMMANDS = ("risk", "audit", "check", "compare", "report", "timeline", "env")


@pytest.fixture
def report(rksp, tmp_path):
    assert rksp("audit", "--init", "gpt2", "--config-overrides", TINY, "--out", tmp_path / "one", *FAST)[0] == 0
    return tmp_path / "one"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_exit_codes(rksp, command):
    code, out, err = rksp(command, "--help")
    assert code == 0 and err == ""
    assert f"example:\n  rksp {command}" in out and "exit codes:" in out


def test_every_command_is_listed(rksp):
    code, out, _ = rksp("--help")
    assert code == 0 and all(f"    {name} " in out for name in COMMANDS)
    assert build_parser().prog == "rksp"
    assert rksp("--version")[1].startswith("rksp ")


def test_check_agrees_for_a_sound_model(rksp):
    overrides = "num_hidden_layers=2,hidden_size=32,num_attention_heads=4,num_key_value_heads=4,intermediate_size=64"
    code, out, err = rksp(
        "check", "--init", "llama-25m", "--config-overrides", f"{overrides},vocab_size=300", *FAST[2:]
    )
    assert code == 0 and out.count(" same\n") == 4 and "gives the same statistics" in out and "position_ids" not in out
    assert "rksp: note: Tokenizer: byte-level BPE" in err


def test_check_finds_positions_that_padding_on_the_left_moves(rksp):
    code, out, _ = rksp("check", "--init", "gpt2", "--config-overrides", TINY, *FAST[2:])
    assert code == 3 and out.count(" same\n") == 4
    assert "right vs left padding " in out and "DIFFERS" in out
    assert "counts positions from the padding. Pass position_ids" in out


def test_check_finds_a_model_that_lets_padding_in(rksp, monkeypatch):
    from transformers import GPT2Model

    forward = GPT2Model.forward

    # Positions shift with the amount of padding, as in models that count positions over the whole row.
    def shifted(self, input_ids=None, attention_mask=None, **kwargs):
        import torch

        position = torch.arange(input_ids.shape[1]) + int((attention_mask == 0).any()) * 7
        return forward(self, input_ids=input_ids, position_ids=position[None] % 64, **kwargs)

    monkeypatch.setattr(GPT2Model, "forward", shifted)
    code, out, _ = rksp("check", "--init", "gpt2", "--config-overrides", TINY, "--json", "-", *FAST[2:])
    assert code == 3
    checks = {c["check"]: c["agrees"] for c in json.loads(out)["checks"]}
    assert checks == {
        "alone_vs_padded": False,
        "right_vs_left_padding": False,
        "batch_1_vs_8": True,
        "float32_vs_bfloat16": True,
    }


def test_check_refuses_a_dtype(rksp):
    code, _, err = rksp("check", "--init", "gpt2", "--dtype", "bfloat16")
    assert code == 2 and "leave --dtype out" in err


def test_compare_with_itself_and_with_another(rksp, report, tmp_path):
    code, out, _ = rksp("compare", report, report / "report.json")
    assert code == 0 and "caveat" not in out and "yes" not in out
    older = json.loads((report / "report.json").read_text())  # before replicates had a precision
    del older["profile"]["setup"]["spectral_config"]["replicate_precision"]
    for layer in older["profile"]["layers"]:
        del layer["replicate_dtype"]
    (tmp_path / "older.json").write_text(json.dumps(older))
    code, out, _ = rksp("compare", report, tmp_path / "older.json")
    assert code == 0 and "caveat" not in out
    assert (
        rksp("audit", "--init", "gpt2", "--config-overrides", TINY, "--seed", 7, "--out", tmp_path / "two", *FAST)[0]
        == 0
    )
    code, out, _ = rksp("compare", report, tmp_path / "two", "--json", "-")
    data = json.loads(out)
    assert code == 0 and any("sha256" in c for c in data["caveats"])
    row = data["differences"][0]
    assert row["quantity"] == "near_unit_mass" and row["difference"] == pytest.approx(row["second"] - row["first"])


def test_report_renders_the_same_bytes_again(rksp, report, tmp_path):
    before = {p.relative_to(report): p.read_bytes() for p in report.rglob("*") if p.is_file() and p.suffix != ".json"}
    code, out, _ = rksp("report", report / "report.json", "--out", tmp_path / "again")
    assert code == 0 and "wrote" in out
    after = {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSON"),
        ("[]", "schema_version"),
        ('{"schema_version": 99}', "schema_version=99"),
        ('{"schema_version": 2, "profile": {"model": {}}, "verdict": {}}', "has no profile.setup"),
    ],
)
@pytest.mark.parametrize("command", ["report", "compare"])
def test_bad_reports(rksp, tmp_path, content, message, command):
    path = tmp_path / "bad.json"
    path.write_text(content)
    code, out, err = rksp(command, path, *([path] if command == "compare" else []))
    assert code == 2 and out == "" and message in err and "Traceback" not in err


def test_missing_report(rksp):
    code, _, err = rksp("report", "nothing.json")
    assert code == 2 and "nothing.json" in err


def test_env(rksp):
    code, out, _ = rksp("env")
    assert code == 0 and "torch: " in out and "cores: " in out
    assert json.loads(rksp("env", "--json", "-")[1])["versions"]["torch"]


def test_json_to_a_file(rksp, tmp_path):
    assert rksp("env", "--json", tmp_path / "env.json")[0] == 0
    assert json.loads((tmp_path / "env.json").read_text())["machine"]
    code, _, err = rksp("env", "--json", tmp_path / "no/such/folder/env.json")
    assert code == 1 and "--json" in err


def test_hostile_name_cannot_leave_the_folder(rksp, tmp_path):
    from transformers import GPT2Config

    name = "a b;<script>alert(1)</script>&|`x`"
    folder = tmp_path / "models" / name.replace("/", "_")
    GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=300, n_positions=64).save_pretrained(folder)
    code, _, err = rksp("audit", "--init", folder, *FAST)
    assert code == 0, err
    made = [p for p in tmp_path.iterdir() if p.name.startswith("rksp_")]
    assert len(made) == 1 and "<" not in made[0].name
    assert "<script>alert(1)" not in (made[0] / "report.html").read_text()


def test_report_names_its_files_as_json(rksp, report, tmp_path):
    code, out, _ = rksp("report", report / "report.json", "--out", tmp_path / "again", "--json", "-")
    assert code == 0 and set(json.loads(out)) == {"md", "html"}


@pytest.mark.parametrize(("change", "distinct"), [(0.0, False), (0.3, True)])
def test_a_difference_without_spread_is_distinct(rksp, report, tmp_path, change, distinct):
    data = json.loads((report / "report.json").read_text())
    for row in data["profile"]["aggregates"].values():
        row["standard_error"] = 0.0
    (tmp_path / "a.json").write_text(json.dumps(data))
    data["profile"]["aggregates"]["near_unit_mass"]["mean"] += change
    data["profile"]["aggregates"]["spectral_radius"]["standard_error"] = None
    (tmp_path / "b.json").write_text(json.dumps(data))
    rows = {
        d["quantity"]: d
        for d in json.loads(rksp("compare", tmp_path / "a.json", tmp_path / "b.json", "--json", "-")[1])["differences"]
    }
    assert rows["near_unit_mass"]["distinct"] is distinct
    assert rows["spectral_radius"]["distinct"] is None
    assert rksp("compare", tmp_path / "a.json", tmp_path / "b.json")[1].count("unknown") == 1


def test_distinct_means_two_standard_errors():
    from hf_rksp.compare import _difference

    class Profile:
        def __init__(self, mean):
            self.aggregates = {"q": {"mean": mean, "standard_error": 0.1}}

    assert _difference("q", Profile(0.0), Profile(0.27)).distinct is False  # 1.9 standard errors of the difference
    assert _difference("q", Profile(0.0), Profile(0.30)).distinct is True


def test_tolerances_of_check_are_those_of_the_dtypes():
    from hf_rksp import check

    assert check.FLOAT32_TOLERANCE <= 1e-3 and check.BFLOAT16_TOLERANCE <= 0.05


def test_the_bfloat16_run_is_in_bfloat16(rksp):
    code, out, _ = rksp("check", "--init", "gpt2", "--config-overrides", TINY, "--json", "-", *FAST[2:])
    differences = {c["check"]: c["moment_difference"] for c in json.loads(out)["checks"]}
    assert code == 3 and differences["float32_vs_bfloat16"] > 1e-4 > differences["batch_1_vs_8"]
