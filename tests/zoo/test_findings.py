"""The sentences that a reader of the zoo meets first."""

from types import SimpleNamespace

from hf_rksp.paper import PaperFigure
from hf_rksp.zoo.pages.findings import in_short


def trend(change, size, name, verdict, tokens=2048):
    return SimpleNamespace(trend=SimpleNamespace(change=change), size=size, name=name, verdict=verdict, tokens=tokens)


TRENDS = [
    trend("more experts", "6 blocks", "near-unit mass", "decreases in the paper; increases here"),
    trend("more experts", "12 blocks", "near-unit mass", "decreases in the paper; increases here"),
    trend("more experts", "6 blocks", "radius", "decreases in the paper; constant here"),
    trend("more experts", "12 blocks", "radius", "decreases in both"),
    trend("a higher order", "6 blocks", "radius", "increases in both"),
]


def row(weights, direction, progress=None):
    model = SimpleNamespace(weights=weights, progress=progress)
    return SimpleNamespace(entry=SimpleNamespace(model=model), facts={"depth": direction})


def test_sizes_with_equal_outcomes_share_a_sentence():
    assert in_short([], [], TRENDS) == [
        "Near-unit mass with more experts: decreases in the paper; increases here (6 blocks, 12 blocks).",
        "Radius with more experts: decreases in the paper; constant here (6 blocks); decreases in both (12 blocks).",
        "Radius with a higher order: increases in both (6 blocks).",
        "These trends hold for 2,048 tokens per model; some reverse with more text (scripts/reproduce/tokens).",
    ]


def test_the_number_of_tokens_is_that_of_the_models():
    sentences = in_short([], [], [*TRENDS, trend("a", "b", "c", "d", tokens=512)])
    assert sentences[-1].startswith("These trends hold for 512 or 2,048 tokens per model;")


def test_models_are_counted_once_and_by_their_weights():
    rows = [
        row("initialised", "decreases"),
        row("initialised", "increases", progress=0.0),
        row("initialised", None),  # no audit
        row("trained", "increases", progress=0.3),  # not at its end
        row("trained", "increases", progress=1.0),
    ]
    (sentence,) = in_short(rows, [], [])
    assert "in 1 of 2 models with random weights, 1 of 1 models trained here." in sentence


def comparison(name, outcomes, untrained=False):
    """``outcomes``: one per number of the paper."""
    comparisons = [
        SimpleNamespace(paper=PaperFigure(1, "spectral_radius", index), outcome=outcome)
        for index, outcome in enumerate(outcomes)
    ]
    return SimpleNamespace(paper=SimpleNamespace(name=name), comparisons=comparisons, untrained=untrained)


def test_a_value_counts_once_and_those_of_pretrained_models_not_at_all():
    comparisons = [
        comparison("MoE", ["agrees", "differs", "too few tokens"]),
        comparison("MoE", ["differs", "differs", "not audited"]),  # another size of the same
        comparison("KAN", ["agrees"]),
        comparison("GPT-2", ["agrees", "differs"], untrained=True),
    ]
    (sentence,) = in_short([], comparisons, [])
    assert sentence.startswith("2 of the paper's 3 comparable values agree with ours for at least one model size.")
    assert in_short([], comparisons[3:], []) == []


def test_nothing_is_said_without_numbers():
    assert in_short([row("initialised", None)], [], []) == []
