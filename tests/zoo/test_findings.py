"""The sentences that a reader of the zoo meets first."""

from types import SimpleNamespace

from hf_rksp.report import Table
from hf_rksp.zoo.pages.findings import in_short

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
    assert in_short([], [], TRENDS)[:-1] == [
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


def beside(name, outcomes, untrained=False):
    """``outcomes``: of each figure, whether it agrees."""
    comparisons = [SimpleNamespace(published=place, agrees=agrees) for place, agrees in enumerate(outcomes)]
    return SimpleNamespace(published=SimpleNamespace(name=name), comparisons=comparisons, untrained=untrained)


def test_a_figure_counts_once_and_those_of_pretrained_models_not_at_all():
    besides = [
        beside("MoE", [True, False, None]),
        beside("MoE", [False, False, None]),  # another size of the same
        beside("KAN", [True]),
        beside("GPT-2", [True, False], untrained=True),
    ]
    (said,) = in_short([], besides, None)
    assert said.startswith("2 of 3 figures of the paper agree with ours in one size at least.")
    assert in_short([], besides[3:], None) == []


def test_nothing_is_said_without_numbers():
    assert in_short([row("initialised", "–")], [], None) == []
