"""The sentences that a reader of the zoo meets first."""

from types import SimpleNamespace

from hf_rksp.report import Table
from hf_rksp.zoo.findings import in_short

TRENDS = Table(
    ("What changes", "In", "Quantity", "Paper", "Ours", "In words"),
    (
        ("more experts", "6 blocks", "near-unit mass", "", "", "the paper's falls, ours rises"),
        ("more experts", "12 blocks", "near-unit mass", "", "", "the paper's falls, ours rises"),
        ("more experts", "6 blocks", "radius", "", "", "the paper's falls, ours is level"),
        ("more experts", "12 blocks", "radius", "", "", "falls in both"),
        ("a higher order", "6 blocks", "radius", "", "", "rises in both"),
    ),
)


def row(weights, pattern, step=None):
    model = SimpleNamespace(weights=weights, step=step)
    return SimpleNamespace(entry=SimpleNamespace(model=model), pattern=pattern)


def test_sizes_that_agree_are_told_once_and_others_one_by_one():
    assert in_short([], [], TRENDS) == [
        "Near-unit mass with more experts: the paper's falls, ours rises, in 2 sizes.",
        "Radius with more experts: 6 blocks: the paper's falls, ours is level; 12 blocks: falls in both.",
        "Radius with a higher order: rises in both.",
    ]


def test_models_are_counted_once_and_apart():
    rows = [
        row("initialised", "falls"),
        row("initialised", "rises", step=0.0),
        row("initialised", "–"),  # no audit
        row("trained", "rises", step=0.3),  # not at its end
        row("trained", "rises", step=1.0),
    ]
    (said,) = in_short(rows, [], None)
    assert said.endswith("in 1 of 2 models (random weights), 1 of 1 models (trained here).")


def test_figures_of_pretrained_models_beside_random_weights_are_told():
    besides = [SimpleNamespace(of=4, agree=1, untrained=True), SimpleNamespace(of=3, agree=2, untrained=False)]
    (said,) = in_short([], besides, None)
    assert said.startswith(
        "Of 7 figures of the paper that stand beside one of ours, 3 agree; 4 of them are of pretrained models"
    )


def test_nothing_is_said_without_numbers():
    assert in_short([row("initialised", "–")], [], None) == []
