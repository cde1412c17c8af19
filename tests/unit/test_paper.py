"""The tables of the paper: one file, its shape, and each number that is compared with ours."""

import ast
import copy
import json
from importlib.resources import files
from pathlib import Path

import pytest

import hf_rksp
from hf_rksp.errors import SchemaError
from hf_rksp.paper import WEIGHTS, paper_from_dict, read_paper
from hf_rksp.profile.aggregate import THIRDS
from hf_rksp.quantities import LAYER, SHARES

#: Model -> table, quantity, printed values; three values are those of the thirds of the depth.
PRINTED = {
    "llama-2-7b": [
        (10, "nonlinearity_ratio", 0.45, 0.58, 0.72),
        (10, "near_unit_mass", 0.74, 0.68, 0.61),
        (10, "eigenvector_condition", 8.2, 9.5, 10.8),
    ],
    "gpt2-124m": [
        (15, "spectral_radius", 1.15, 1.23, 1.31),
        (15, "eigenvector_condition", 8.3, 10.1, 11.2),
        (15, "nonlinearity_ratio", 0.52, 0.61, 0.71),
        (15, "near_unit_mass", 0.68, 0.62, 0.58),
    ],
    "gpt2-355m": [
        (15, "spectral_radius", 1.12, 1.19, 1.27),
        (15, "eigenvector_condition", 7.5, 9.2, 10.8),
        (15, "nonlinearity_ratio", 0.48, 0.58, 0.68),
        (15, "near_unit_mass", 0.72, 0.65, 0.60),
    ],
    "pre-ln": [(1, "near_unit_mass", 0.16), (1, "expansive_mass", 0.54), (1, "spectral_radius", 2.29)],
    "moe-k1": [(16, "near_unit_mass", 0.72), (16, "spectral_radius", 2.85)],
    "moe-k2": [(11, "nonlinearity_ratio", 0.55), (11, "near_unit_mass", 0.58), (11, "spectral_radius", 2.12)],
    "moe-k4": [(16, "near_unit_mass", 0.45), (16, "spectral_radius", 1.78)],
    "mamba-d256": [
        (11, "nonlinearity_ratio", 0.42),
        (17, "near_unit_mass", 0.12),
        (17, "contractive_mass", 0.85),
        (17, "spectral_radius", 0.95),
    ],
    "kan-b4": [
        (18, "nonlinearity_ratio", 0.78),
        (18, "reliable_fraction", 0.68),
        (11, "near_unit_mass", 0.52),
        (11, "spectral_radius", 2.15),
    ],
    "kan-b8": [(18, "nonlinearity_ratio", 0.82), (18, "reliable_fraction", 0.52)],
}
PRETRAINED = {"llama-2-7b", "gpt2-124m", "gpt2-355m"}


@pytest.fixture
def data():
    """A copy of the file's content, to be spoiled."""
    return copy.deepcopy(json.loads(files("hf_rksp").joinpath("paper.json").read_text(encoding="utf-8")))


def test_each_number_is_as_printed():
    models = read_paper().models
    found = {key: [(f.table, f.quantity, f.value, f.third) for f in model.figures] for key, model in models.items()}
    wanted = {
        key: [
            (table, quantity, value, third)
            for table, quantity, *values in rows
            for value, third in zip(values, THIRDS if len(values) == 3 else (None,), strict=True)
        ]
        for key, rows in PRINTED.items()
    }
    assert found == wanted and list(found) == list(wanted)


def test_table_2_is_as_printed():
    table = read_paper().tables[2]
    assert [(row["predictor"], f"{row['auroc']:.3f}", row["interval"]) for row in table.rows] == [
        ("near-unit mass", "0.995", [0.986, 1.0]),
        ("near-unit mass × log₁₀ κ(V)", "0.873", None),
        ("spectral radius", "0.845", None),
        ("loss spikes to step 500", "0.758", None),
        ("gradient variance to step 100", "0.702", None),
        ("eigenvector condition", "0.687", None),
        ("gradient norm at step 100", "0.685", None),
        ("initial gradient norm", "0.621", None),
    ]


def test_what_is_pretrained_and_what_may_be_f_alone():
    models = read_paper().models
    assert {key for key, model in models.items() if model.pretrained} == PRETRAINED
    assert {key for key, model in models.items() if model.may_exclude_residual} == {"mamba-d256"}
    assert models["gpt2-124m"].setting.startswith("Pretrained weights. 32 short prompts")
    assert models["kan-b4"].setting.count("does not state") == 1  # two tables, one setting


def test_mean_over_the_layers():
    models = read_paper().models
    assert models["moe-k4"].mean("spectral_radius") == 1.78
    with pytest.raises(KeyError):
        models["gpt2-124m"].mean("spectral_radius")  # it has thirds only


def test_shape_of_the_file():
    paper = read_paper()
    assert "arXiv:2602.22988" in paper.source
    for number, table in paper.tables.items():
        assert table.title and table.setting and table.weights in WEIGHTS, number
        for row in table.rows:
            assert row.get("third", "early") in THIRDS, (number, row)
            for column, value in row.items():
                assert isinstance(value, (str, int, float, list, type(None))), (number, column)
                if column in SHARES:
                    assert 0 <= value <= 1, (number, column)
    for key, model in paper.models.items():
        assert model.name and model.figures, key
        assert {figure.quantity for figure in model.figures} <= set(LAYER), key


def spoil_version(data):
    data["schema_version"] = 2


def spoil_columns(data):
    del data["tables"][0]["rows"][1]["spectral_radius"]


def spoil_twice(data):
    data["tables"].append(data["tables"][0])


def spoil_weights(data):
    data["tables"][0]["weights"] = "random"


def spoil_row(data):
    data["models"][0]["figures"][0]["model"] = "LLaMA-3"


def spoil_quantity(data):
    data["models"][0]["figures"][0]["quantities"] = ["spectral_radius"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_version, "schema_version=2: this version reads 1"),
        (spoil_columns, "table 1: give each row the same columns"),
        (spoil_twice, "table 1 is there twice"),
        (spoil_weights, "table 1: weights='random' is none of initialised"),
        (spoil_row, "model llama-2-7b: table 10 has no row for 'LLaMA-3'"),
        (spoil_quantity, "model llama-2-7b: table 10 has no column 'spectral_radius'"),
    ],
)
def test_a_file_of_another_shape_is_refused(data, spoil, message):
    paper_from_dict(data)
    spoil(data)
    with pytest.raises(SchemaError, match=message):
        paper_from_dict(data)


def test_a_table_of_any_shape_fits(data):
    """Counts, intervals and empty cells, as in the paper's tables of training runs."""
    rows = [
        {"model": "none", "diverged": 16, "runs": 24, "overhead": None},
        {"model": "KSS", "diverged": 6, "runs": 24, "overhead": [0.09, 0.11]},
    ]
    table = {"table": 3, "title": "Control", "setting": "No normalisation.", "weights": "trained", "rows": rows}
    data["tables"].append(table)
    read = paper_from_dict(data).tables[3]
    assert read.columns == ("model", "diverged", "runs", "overhead") and list(read.rows) == rows


def test_no_module_of_the_zoo_holds_a_number_of_the_paper():
    """Numbers with two decimals that stand in a table that is compared, in code rather than in the file."""
    root = Path(hf_rksp.__file__).parent
    printed = {value for rows in PRINTED.values() for _, _, *values in rows for value in values}
    allowed = {0.1, 0.05}
    for path in (root / "zoo").rglob("*.py"):
        numbers = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        numbers = {value for value in numbers if isinstance(value, float)} - allowed
        assert not numbers & printed, path
