"""What the index says about each model: one table of facts for the page, the README and the comparison of two models."""

from dataclasses import replace

import pytest

from hf_rksp.zoo import read_shelf
from hf_rksp.zoo.pages.rows import FACTS, Ranks, row_of
from hf_rksp.zoo.render import all_models


@pytest.fixture(scope="module")
def rows(zoo):
    return {entry.model.id: row_of(entry) for entry in read_shelf(zoo, all_models(zoo)).entries}


def test_facts_of_an_audited_model(rows):
    texts = rows["tiny-gpt2-init"].texts()
    assert list(texts) == [fact.key for fact in FACTS]
    assert texts["weights"] == "random weights" and texts["seeds"] == "2 of 2"
    assert texts["layers"] == "3" and texts["width"] == "32" and texts["tokens"] == "256"
    assert texts["ranks"] == "32" and texts["seconds"].endswith(" s")
    assert rows["tiny-gpt2-init"].sort("ranks") == 32


def test_facts_of_a_model_without_an_audit(rows):
    row = rows["gpt2"]
    texts = row.texts()
    assert texts.pop("weights") == "pretrained weights" and texts.pop("seeds") == "0 of 1"
    assert texts.pop("band") == "not audited yet"
    assert set(texts.values()) == {"–"}
    assert row.sort("parameters") == row.sort("spectral_radius") == row.sort("ranks") == ""
    assert not row.projected


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        (Ranks(768, 768, 768, False), "768"),
        (Ranks(768, 743, 768, False), "743 to 768"),
        (Ranks(1024, 743, 1600, True), "743 to 1,024 of 1,600, projected"),
        (Ranks(1024, 1024, 1024, True), "1,024 projected"),
    ],
)
def test_ranks_in_words(ranks, text):
    assert str(ranks) == text


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [
        (2.453, 0.4698, "2.45 ± 0.47"),
        (1.26, 0.0022, "1.26 ± <0.01"),
        (3660.0, 488.2, "3,660 ± 488"),
        (4.2e6, 31234.0, "4.2 × 10⁶ ± 31,000"),
        (2.0, None, "2.00"),
        (None, 0.1, "–"),
    ],
)
def test_the_deviation_has_the_decimals_of_the_mean(rows, mean, deviation, text):
    row = replace(rows["tiny-gpt2-init"], means={"spectral_radius": mean}, deviations={"spectral_radius": deviation})
    assert row.shown("spectral_radius") == text
