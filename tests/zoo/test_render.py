"""Pages, index and tables come from the JSON files alone, byte for byte, and say what is not there."""

import json
from dataclasses import replace
from types import SimpleNamespace

import datasets
import pytest
import yaml

from hf_rksp.cli.main import main
from hf_rksp.errors import SchemaError
from hf_rksp.risk.thresholds import NO_INTERVAL
from hf_rksp.zoo import read_shelf, render_zoo, shelf
from hf_rksp.zoo.pages import paper_comparison as compare
from hf_rksp.zoo.pages import trajectories as training
from hf_rksp.zoo.published import PUBLISHED
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
    assert "The paper's figures are of the pretrained model, these are of random weights" in text
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
    assert "[Tiny GPT-2 (init)](tiny-gpt2-init/report.md)" in text and "2 of 2" in text
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
    with pytest.raises(SchemaError, match=r"tiny-gpt2-init/report.json: no report .* delete it"):
        render_zoo(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_without_its_first_seed_a_model_is_not_audited_and_its_old_pages_go(zoo, tmp_path):
    folder = copied(zoo, tmp_path, ["*/*", "*/figures/*"])
    (folder / "tiny-gpt2-init" / "report.json").unlink()
    render_zoo(folder)
    left = {path.name for path in (folder / "tiny-gpt2-init").rglob("*") if path.is_file()}
    assert left == {"model.json", "seed-2.json", "report.md"}
    assert "Not audited yet" in (folder / "tiny-gpt2-init" / "report.md").read_text()
    assert "0 of 2" in (folder / "README.md").read_text()


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
    compared = [int(page.split(" agree.")[0].rpartition(" of ")[2]) for page in (before, text)]
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


class Fake:
    """An entry with given thirds."""

    def __init__(self, values):
        self.thirds = dict(zip(("early", "middle", "late"), values, strict=True))

    def mean(self, quantity, third=None):
        return self.thirds[third]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ((0.1, 0.2, 0.3), "rises"),
        ((0.3, 0.2, 0.1), "falls"),
        ((0.2, 0.3, 0.2), "neither"),
        ((0.2, 0.21, 0.2), "level"),
        ((0.20, 0.24, 0.23), "rises"),  # a step back of less than .02 is noise
        ((0.24, 0.20, 0.21), "falls"),
        ((0.20, 0.24, 0.21), "neither"),
    ],
)
def test_pattern_over_the_depth(values, word):
    assert compare.start_to_end(Fake(values))[0] == word


@pytest.mark.parametrize(
    ("ours", "agrees", "said"),
    [
        (1.16, True, "agrees"),
        (1.30, False, "differs: ours is 0.15 higher"),
        (0.90, False, "differs: ours is 0.25 lower"),
        (11.5, False, "differs: ours is 10 times as large"),
        (None, None, "not audited yet"),
    ],
)
def test_agreement_in_words(ours, agrees, said):
    figure = PUBLISHED["gpt2-124m"].figures[0]
    assert (figure.quantity, figure.value) == ("spectral_radius", 1.15)
    comparison = compare.Comparison(figure, ours, audited=ours is not None)
    assert (comparison.agrees, comparison.verdict) == (agrees, said)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ((1.0, 1.5, 2.0), "rises"),
        ((2.0, 1.5, 1.0), "falls"),
        ((1.66, 1.64, 1.65), "level"),
        ((0.40, 0.43), "rises"),
        ((1.0, 2.0, 1.0), "neither"),
    ],
)
def test_course(values, word):
    assert compare.course(values) == word


def test_trends_need_all_their_models_in_one_size(zoo):
    found = {entry.model.id: entry for entry in read_shelf(zoo, all_models(zoo)).entries}
    tiny, wide = found["tiny-gpt2-init"], found["wide-gpt2-init"]
    as_key = lambda entry, key: replace(entry, model=replace(entry.model, published=key))  # noqa: E731
    raised = json.loads(json.dumps(tiny.report))
    raised["profile"]["aggregates"]["nonlinearity_ratio"]["mean"] += 0.1
    more = replace(tiny, reports={1: raised, 2: raised})
    assert compare.trends([as_key(tiny, "kan-b4"), as_key(wide, "kan-b8")]) is None
    rows = compare.trends([as_key(more, "kan-b8"), as_key(wide, "kan-b8"), as_key(tiny, "kan-b4")]).rows
    assert [row[1:3] for row in rows] == [
        ("3 blocks of 32", "nonlinearity ratio (η_nl)"),
        ("3 blocks of 32", "reliable share of modes"),
    ]
    assert rows[0][3] == "0.78, 0.82" and rows[0][5] == "rises in both"
    assert rows[1][5] == "the paper's falls, ours is level"


@pytest.mark.parametrize(
    ("ours", "low", "agrees", "said"),
    [
        (0.60, 0.0, True, "agrees"),
        (0.60, 0.3, None, "not comparable: with so few tokens ours comes out up to 30% too low"),
        (0.50, 0.3, None, "not comparable: with so few tokens ours comes out up to 30% too low"),
        (0.30, 0.3, False, "differs: ours is 0.28 lower"),
        (0.90, 0.3, False, "differs: ours is 0.32 higher"),
    ],
)
def test_agreement_where_tokens_are_few(ours, low, agrees, said):
    figure = next(
        part for part in PUBLISHED["llama-2-7b"].figures if part.quantity == "nonlinearity_ratio" and part.value == 0.58
    )
    comparison = compare.Comparison(figure, ours, low=low)
    assert (comparison.agrees, comparison.verdict) == (agrees, said)


def test_how_much_too_low_it_may_be(zoo):
    entry = next(entry for entry in read_shelf(zoo, all_models(zoo)).entries if entry.model.id == "tiny-gpt2-init")

    def low(tokens, per_direction):
        report = json.loads(json.dumps(entry.report))
        report["profile"]["layers"][0]["tokens"] = tokens
        next(check for check in report["verdict"]["checks"] if check["id"] == "tokens_per_direction")["value"] = (
            per_direction
        )
        return compare._too_low(replace(entry, reports={1: report}))

    assert low(8192, 1.1) == 0.0
    assert low(2048, 8.0) == compare.TOO_LOW  # the fit explains .06, repeated tokens the rest
    assert low(2048, 1.25) == pytest.approx(1 - 0.2**0.5)


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
    assert "The interval is that of the mean of 2 seeds" in text and NO_INTERVAL not in text


def test_step_zero_counts_as_random_weights(zoo, tmp_path):
    rendered_with(zoo, tmp_path, lambda models: [models[0] | {"source": "trained", "step": 0}])
    rows = datasets.load_dataset("parquet", data_files=str(tmp_path / "parquet" / "layers.parquet"), split="train")
    assert set(rows["source"]) == {"initialised"} and set(rows["training_share"]) == {0.0}
    readme = (tmp_path / "README.md").read_text()
    assert "| random weights |" in readme and "of 1 models (random weights)" in readme


def test_training_is_drawn_where_there_are_two_points_of_it(zoo, tmp_path):
    assert "What training moves" not in (zoo / "README.md").read_text()
    # The wide model stands for the tiny one after its training: later in time, earlier in the manifest.
    shelf = rendered_with(zoo, tmp_path, lambda models: [models[1] | {"step": 1.0}, models[0] | {"step": 0.1}])
    readme = (tmp_path / "README.md").read_text()
    shown = [f"{entry.mean('near_unit_mass'):.3f}" for entry in shelf.entries]
    table = readme.split("## What training moves")[1].split("## ")[0]
    assert "figures/training.svg" in table
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| GPT-2")]
    assert [cells[1] for cells in lines] == ["10%", "100%"]
    assert lines[1][2] == shown[0] and lines[0][2].startswith(f"{shown[1]} ±")
    late_over_early = [
        entry.mean("nonlinearity_ratio", "late") / entry.mean("nonlinearity_ratio", "early") for entry in shelf.entries
    ]
    gains = late_over_early[0] - late_over_early[1] > compare.LEVEL  # the last point stands first in the manifest
    assert f"Training moves it that way in {int(gains)} of 1 families" in readme
    drawing = (tmp_path / "figures" / "training.svg").read_text()
    assert drawing.count("<circle") == 12 and 'class="fam0"' in drawing
    early = (tmp_path / "tiny-gpt2-init" / "report.md").read_text()
    assert "weights **trained for the zoo, 10%**" in early and "After 10% of its training." in early
    page = (tmp_path / "index.html").read_text()
    assert 'id="training"' in page and 'href="#training"' in page


@pytest.mark.parametrize(("late", "gains"), [(0.30, ["GPT-2"]), (0.203, []), (0.1, [])])
def test_training_moves_the_nonlinearity_to_the_late_layers(late, gains):
    rows = [SimpleNamespace(entry=Fake((0.2, 0.2, value))) for value in (0.2, 0.9, late)]
    assert training.late_gains([("GPT-2", rows)]) == (gains, 1)
