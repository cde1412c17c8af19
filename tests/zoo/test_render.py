"""Pages, index and tables come from the JSON files alone, byte for byte, and say what is not there."""

import json
import re

import datasets
import pytest
import yaml

from hf_rksp.cli.main import main
from hf_rksp.errors import SchemaError
from hf_rksp.risk.thresholds import NO_INTERVAL
from hf_rksp.zoo import read_shelf, render_zoo, shelf
from hf_rksp.zoo.pages import trends
from hf_rksp.zoo.render import all_models


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied(zoo, folder, patterns):
    for path in (path for pattern in patterns for path in zoo.glob(pattern) if path.is_file()):
        target = folder / path.relative_to(zoo)
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_bytes(path.read_bytes())
    return folder


def rendered_with(zoo, folder, change):
    """The zoo rendered in ``folder`` with ``change(models)`` for the models of its manifest."""
    copied(zoo, folder, ["*/*.json"])
    path = folder / "manifests" / "tiny.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"models": change(data["models"])}))
    return render_zoo(folder)


def test_rendered_again_nothing_changes(zoo):
    before = contents(zoo)
    render_zoo(zoo)
    assert contents(zoo) == before


def test_from_json_alone(zoo, tmp_path):
    copied(zoo, tmp_path, ["*/*.json"])
    render_zoo(tmp_path)
    assert contents(tmp_path) == contents(zoo)


def test_page_of_a_model(zoo):
    text = (zoo / "tiny-gpt2-init" / "report.md").read_text()
    assert text.startswith("# Tiny GPT-2 (init): spectral profile")
    assert "| Mean over layers | seed 1 | seed 2 | mean of seeds | 95% interval | std. dev. |" in text
    assert "The paper measured pretrained weights; ours are random." in text
    assert text.count("| Table 15 |") == 12
    assert "Licence: none." in text
    page = (zoo / "tiny-gpt2-init" / "report.html").read_text()
    assert 'id="seeds"' in page and 'id="published"' in page and 'href="#seeds"' in page


def test_not_audited_is_said_and_shows_no_numbers(zoo):
    text = (zoo / "gpt2" / "report.md").read_text()
    assert "**Not audited yet.**" in text and f"rksp audit openai-community/gpt2 --revision {'0' * 40} --seed 1" in text
    assert "| spectral radius, early (ρ) | Table 15 | 1.15 |" in text
    assert sorted(path.name for path in (zoo / "gpt2").iterdir()) == ["model.json", "report.md"]
    broken = (zoo / "broken-init" / "report.md").read_text()
    assert "Not audited yet" in broken and "```text\nrksp: error: config_overrides: n_layer" in broken
    assert "<b>" not in broken and "<script>" not in broken


def test_readme_and_comparison(zoo):
    text = (zoo / "README.md").read_text()
    assert "[Tiny GPT-2 (init)](tiny-gpt2-init/report.md)" in text and " ± " in text
    assert "not audited yet" in text and "broken-init, seed 1" in text
    assert "<b>" not in text  # a title is text
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    assert links and all((zoo / link).is_file() for link in links)
    comparison = (zoo / "comparison.md").read_text()
    assert comparison.count("| Table 15 |") == 24


def test_the_page_of_the_index_holds_no_request(zoo):
    page = (zoo / "index.html").read_text()
    assert "://" not in page.replace("http://www.w3.org", "")
    assert len(page) < 1.5 * 2**20


def test_tables_load(zoo):
    layers = datasets.load_dataset("parquet", data_files=str(zoo / "parquet" / "layers.parquet"), split="train")
    models = datasets.load_dataset("parquet", data_files=str(zoo / "parquet" / "models.parquet"), split="train")
    assert len(models) == 3 and len(layers) == 9
    whole = json.loads((zoo / "tiny-gpt2-init" / "report.json").read_text())
    row = next(row for row in layers if row["id"] == "tiny-gpt2-init" and row["seed"] == 1 and row["index"] == 1)
    for name in ("near_unit_mass", "spectral_radius", "nonlinearity_ratio"):
        assert row[name] == whole["profile"]["layers"][1][name]
        assert row[f"{name}_standard_error"] == whole["profile"]["layers"][1]["standard_errors"][name]
    card = (zoo / "DATASET_CARD.md").read_text().split("---")[1]
    files = [config["data_files"] for config in yaml.safe_load(card)["configs"]]
    assert all((zoo / file).is_file() for file in files) and len(files) == 2
    metadata = yaml.safe_load((zoo / "tiny-gpt2-init" / "model-card.yaml").read_text())
    metrics = {m["type"]: m["value"] for m in metadata["model-index"][0]["results"][0]["metrics"]}
    assert metrics["near_unit_mass"] == pytest.approx(
        whole["profile"]["aggregates"]["near_unit_mass"]["mean"], abs=1e-6
    )


def test_a_result_that_was_cut_short_is_named(zoo, tmp_path):
    copied(zoo, tmp_path, ["*/*.json"])
    (tmp_path / "tiny-gpt2-init" / "report.json").write_text("{")
    with pytest.raises(SchemaError, match=r"tiny-gpt2-init/report.json: not a report .* delete it"):
        render_zoo(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_without_its_first_seed_a_model_is_not_audited_and_its_old_pages_go(zoo, tmp_path):
    folder = copied(zoo, tmp_path, ["*/*", "*/figures/*"])
    (folder / "tiny-gpt2-init" / "report.json").unlink()
    render_zoo(folder)
    left = {path.name for path in (folder / "tiny-gpt2-init").rglob("*") if path.is_file()}
    assert left == {"model.json", "seed-2.json", "report.md"}
    assert "Not audited yet" in (folder / "tiny-gpt2-init" / "report.md").read_text()
    assert re.search(r"\[Tiny GPT-2 \(init\)\].*not audited yet", (folder / "README.md").read_text())


def test_a_quantity_that_is_not_defined_is_no_disagreement(zoo, tmp_path):
    folder = copied(zoo, tmp_path, ["*/*", "*/figures/*"])
    for name in ("report.json", "seed-2.json"):
        path = folder / "tiny-gpt2-init" / name
        data = json.loads(path.read_text())
        data["profile"]["aggregates"]["near_unit_mass"]["mean"] = None
        data["profile"]["thirds"]["early"]["eigenvector_condition"] = None
        path.write_text(json.dumps(data))
    render_zoo(folder)
    before, text = ((place / "tiny-gpt2-init" / "report.md").read_text() for place in (zoo, folder))
    assert "| Table 15 | 8.3 | – | not defined here |" in text
    compared = [int(re.search(r"\d+ of (\d+) values agrees?\.", page)[1]) for page in (before, text)]
    assert compared[1] == compared[0] - 1


def test_a_report_without_eigenvalues_says_so(zoo, capsys):
    assert main(["report", str(zoo / "tiny-gpt2-init" / "seed-2.json")]) == 2
    assert "without eigenvalues" in capsys.readouterr().err


def test_interval_of_a_share_stays_within_0_and_1():
    low, high = shelf.interval([0.0, 0.0, 0.02], "near_unit_mass")
    assert low == 0.0 and high == pytest.approx(0.0067 + 4.303 * 0.0067, rel=0.01)
    assert shelf.interval([1.0, 1.0, 0.98], "near_unit_mass")[1] == 1.0
    assert shelf.interval([1.0], "near_unit_mass") is None


def test_means_over_seeds(zoo):
    entry = read_shelf(zoo, all_models(zoo)).entries[0]
    files = [zoo / "tiny-gpt2-init" / name for name in ("report.json", "seed-2.json")]
    each = [json.loads(file.read_text())["profile"]["aggregates"]["spectral_radius"]["mean"] for file in files]
    assert entry.mean("spectral_radius") == pytest.approx(sum(each) / 2)
    assert entry.deviation("spectral_radius") == pytest.approx(abs(each[0] - each[1]) / 2**0.5)


def test_interval_of_the_seeds_where_a_report_has_none(zoo, tmp_path):
    copied(zoo, tmp_path, ["*/*.json"])
    path = tmp_path / "tiny-gpt2-init" / "report.json"
    report = json.loads(path.read_text())
    report["verdict"] |= {"interval": None, "reasons": ["Mean near-unit mass.", NO_INTERVAL]}
    path.write_text(json.dumps(report))
    shelf = render_zoo(tmp_path)
    low, high = shelf.entries[0].interval("near_unit_mass")
    text = (tmp_path / "tiny-gpt2-init" / "report.md").read_text()
    assert f"| {low:.3f} to {high:.3f} |\n" in text.split("## What the published thresholds say")[1]
    assert "The interval belongs to the mean over 2 seeds" in text and NO_INTERVAL not in text


def test_step_zero_counts_as_random_weights(zoo, tmp_path):
    rendered_with(zoo, tmp_path, lambda models: [models[0] | {"source": "trained", "progress": 0}])
    rows = datasets.load_dataset("parquet", data_files=str(tmp_path / "parquet" / "layers.parquet"), split="train")
    assert set(rows["source"]) == {"initialised"} and set(rows["progress"]) == {0.0}
    readme = (tmp_path / "README.md").read_text()
    assert "| random weights |" in readme and "of 1 models with random weights" in readme


def test_training_is_drawn_where_there_are_two_points_of_it(zoo, tmp_path):
    assert "What training changes" not in (zoo / "README.md").read_text()
    # The wide model stands for the tiny one after its training: later in time, earlier in the manifest.
    shelf = rendered_with(zoo, tmp_path, lambda models: [models[1] | {"progress": 1.0}, models[0] | {"progress": 0.1}])
    readme = (tmp_path / "README.md").read_text()
    shown = [f"{entry.mean('near_unit_mass'):.3f}" for entry in shelf.entries]
    table = readme.split("## What training changes")[1].split("## ")[0]
    assert "figures/training.svg" in table
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| GPT-2")]
    assert [cells[1] for cells in lines] == ["10%", "100%"]
    assert lines[1][2] == shown[0] and lines[0][2].startswith(f"{shown[1]} ±")
    late_over_early = [
        entry.mean("nonlinearity_ratio", "late") / entry.mean("nonlinearity_ratio", "early") for entry in shelf.entries
    ]
    gains = late_over_early[0] - late_over_early[1] > trends.LEVEL  # the last point stands first in the manifest
    assert f"Training moves nonlinearity to the late layers in {int(gains)} of 1 families" in readme
    drawing = (tmp_path / "figures" / "training.svg").read_text()
    assert drawing.count("<circle") == 12 and 'class="fam0"' in drawing
    early = (tmp_path / "tiny-gpt2-init" / "report.md").read_text()
    assert "weights **trained for the zoo, 10%**" in early and "After 10% of its training." in early
    page = (tmp_path / "index.html").read_text()
    assert 'id="training"' in page and 'href="#training"' in page


def test_readme_and_index_lead_with_the_table_and_one_figure(zoo):
    """What a reader came for stands before sentences about it."""
    for name, parts in {
        "README.md": ["| Model | Weights |", "figures/scaling.svg", "## What the reports say", "do not say"],
        "index.html": ['<table class="data zoo"', 'id="scaling"', 'id="findings"', 'id="limits"', 'id="compare"'],
    }.items():
        text = (zoo / name).read_text()
        positions = [text.index(part) for part in parts]
        assert positions == sorted(positions), name
