"""support.md is made of support.json and nothing else; rows survive a run that is stopped."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
from support import run, table

ROOT = Path(__file__).parents[2]

ROWS = {
    "bert": {"type": "bert", "outcome": "works", "reason": "", "input": {"input_ids": [8, 19]}, "class": "BertModel"},
    "vit": {
        "type": "vit",
        "outcome": "works with a note",
        "reason": "a | b",
        "input": {"pixel_values": [8, 3, 32, 32]},
    },
    "bit": {"type": "bit", "outcome": "refused", "reason": "no blocks", "input": {"pixel_values": [8, 3, 32, 32]}},
    "part_of_vit": {"type": "part_of_vit", "outcome": "part", "whole": "vit", "reason": "no model of its own"},
}
TYPES = [*ROWS, "llama"]


def test_a_type_has_the_outcome_of_its_row_of_its_whole_or_of_nothing_yet():
    data = table.collected(ROWS, TYPES)
    assert {name: entry["outcome"] for name, entry in data["types"].items()} == {
        "bert": "works",
        "bit": "refused",
        "llama": "not tried",
        "part_of_vit": "works with a note",
        "vit": "works with a note",
    }
    assert data["types"]["llama"]["reason"] == "not reached yet"
    assert data["types"]["part_of_vit"]["reason"] == "no model of its own: tried as a part of vit; a | b"
    assert data["counts"] == {"works": 1, "works with a note": 2, "refused": 1, "not tried": 1, "fault": 0}


def test_the_page_has_every_type_once_under_its_outcome():
    page = table.render(table.collected(ROWS, TYPES))
    sections = {part.split(":")[0]: part for part in page.split("\n## ")[1:]}
    assert "`bert`" in sections["Works"] and "`bit`" in sections["Refused"] and "`llama`" in sections["Not tried"]
    assert "| `vit` | Images | a \\| b |" in sections["Works with a note"]
    assert all(page.count(f"`{name}`") == 1 for name in TYPES)
    assert "| Images | 3 | 0 | 2 | 1 | 0 |" in page


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (("input_ids", "attention_mask"), "text"),
        (("input_ids", "decoder_input_ids"), "text to text"),
        (("input_ids", "pixel_values"), "text and image"),
        (("pixel_values_videos",), "video"),
        (("input_features", "decoder_input_ids"), "audio to text"),
        (("past_values", "past_observed_mask"), "series"),
    ],
)
def test_family(names, family):
    assert table.family({"input": dict.fromkeys(names)}) == family


def test_what_is_published_renders_from_its_json():
    folder = ROOT / "zoo_reports"
    data = json.loads((folder / "support.json").read_text(encoding="utf-8"))
    assert (folder / "support.md").read_text(encoding="utf-8") == table.render(data)


def test_publishing_twice_gives_the_same_bytes(tmp_path):
    table.publish(ROWS, TYPES, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    table.publish(ROWS, TYPES, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert set(first) == {"support.json", "support.md"}


def test_a_line_that_was_cut_short_costs_that_row_alone(tmp_path):
    file = tmp_path / "rows.jsonl"
    run.append(file, ROWS["bert"])
    with open(file, "a", encoding="utf-8") as out:
        out.write('{"type": "vit", "outc')
    run.append(file, ROWS["bit"])
    run.append(file, ROWS["bert"] | {"outcome": "fault"})
    rows = run.read(file)
    assert list(rows) == ["bert", "bit"] and rows["bert"]["outcome"] == "fault" and rows["bit"] == ROWS["bit"]


def test_types_that_do_not_exist_are_named(capsys):
    assert run.main(["--only", "bert", "brt"]) == 2
    assert "brt" in capsys.readouterr().err
