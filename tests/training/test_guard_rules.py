"""What the guard takes for a failing step, and which action it takes: no training here."""

import json
import math
import random

import pytest

from hf_rksp.config.guard import GuardConfig
from hf_rksp.errors import InputError
from hf_rksp.training.guard.judge import Judge
from hf_rksp.training.guard.ladder import Ladder


def healthy(steps, seed=0, level=3.0):
    dice = random.Random(seed)
    return [
        (level * math.exp(-step / 300) + 1 + dice.gauss(0, 0.05), math.exp(dice.gauss(0, 0.3))) for step in range(steps)
    ]


def judged(judge, pairs):
    return [[finding.rule for finding in judge.judge(*pair)] for pair in pairs]


def test_healthy_runs_have_no_failing_step():
    failing = sum(bool(rules) for seed in range(4) for rules in judged(Judge(GuardConfig()), healthy(600, seed)))
    assert failing == 0


@pytest.mark.parametrize(
    ("pair", "rules"),
    [
        ((math.nan, 1.0), ["loss not finite"]),
        ((2.0, math.inf), ["gradient norm not finite"]),
        ((60.0, 1.0), ["loss above its limit"]),
        ((2.0, 501.0), ["gradient norm above its limit"]),
        ((math.inf, math.nan), ["loss not finite", "gradient norm not finite"]),
        ((2.0, None), []),
    ],
)
def test_what_fails_at_once(pair, rules):
    """As soon as one step has been below the limits, when there is no past yet."""
    assert judged(Judge(GuardConfig()), [(2.0, 1.0), pair])[1] == rules


def test_a_limit_holds_for_runs_that_are_well_below():
    assert judged(Judge(GuardConfig()), [(60.0, 501.0), (55.0, 700.0)]) == [[], []]
    assert judged(Judge(GuardConfig()), [(20.0, 1.0), (60.0, 1.0)])[1] == ["loss above its limit"]
    assert judged(Judge(GuardConfig()), [(math.nan, 1.0)]) == [["loss not finite"]], "NaN needs no limit"
    around = [(45 + 2.5 * (step % 7), 1.0) for step in range(100)]
    assert not any(judged(Judge(GuardConfig()), around)), "the loss of some tasks lies around the limit"


def test_a_deviation_waits_for_another_level():
    judge = Judge(GuardConfig())
    judged(judge, healthy(200))
    found = [judge.judge(6.0 + step / 4, 1.0) for step in range(40)]  # a rise that goes on is no level
    waits = [all(one.waits for one in each) for each in found if each]
    assert waits == [True] * 29 + [False] * 9, "from the 32nd deviating step on"
    assert not judge.judge(math.nan, 1.0)[0].waits


def test_an_update_that_grows_is_found():
    judge = Judge(GuardConfig(patience=1))
    for loss, norm in healthy(100):
        assert not judge.judge(loss, norm, 0.1)
    assert [one.rule for one in judge.judge(2.0, 1.0, 30.0)] == ["update norm leaves its past"]
    assert [one.rule for one in judge.judge(2.0, 1.0, math.nan)] == ["update norm not finite"]
    assert not judge.judge(2.0, 1.0, 0.0), "a step that changes nothing is no sign"


def test_what_deviates_fails_after_patience():
    judge = Judge(GuardConfig(patience=3))
    judged(judge, healthy(200))
    assert judged(judge, [(9.0, 1.0)] * 4) == [[], [], ["loss leaves its past"], ["loss leaves its past"]]
    assert judged(judge, [(2.5, 60.0)] * 3)[2] == ["gradient norm leaves its past"]
    assert judged(judge, [(2.5, 1.0), (9.0, 1.0), (9.0, 1.0), (2.5, 1.0)]) == [[]] * 4, "two in a row are not three"


def test_one_bad_step_poisons_no_window():
    judge, other = Judge(GuardConfig()), Judge(GuardConfig())
    judged(judge, healthy(200))
    judged(other, healthy(200))
    judged(judge, [(math.nan, math.nan), (1e30, 1e30), (9.0, 400.0)] * 20)
    assert judge.state_dict()["past"]["loss"]["past"] == other.state_dict()["past"]["loss"]["past"]


def test_a_run_that_moves_to_another_level_is_healthy_again():
    judge = Judge(GuardConfig())
    judged(judge, healthy(200))
    dice = random.Random(1)
    rules = judged(judge, [(12 + dice.gauss(0, 0.05), 1.0) for _ in range(100)])
    assert rules[10] == ["loss leaves its past"] and rules[-1] == []


def test_after_a_reset_there_is_no_past():
    judge = Judge(GuardConfig(patience=1))
    judged(judge, healthy(200))
    judge.reset()
    assert judged(judge, [(9.0, 1.0)] * 3) == [[]] * 3


def test_state_goes_on():
    one, other = Judge(GuardConfig()), Judge(GuardConfig())
    judged(one, [*healthy(100), (9.0, 1.0), (9.0, 1.0)])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert judged(other, [(9.0, 1.0)]) == judged(one, [(9.0, 1.0)]) == [["loss leaves its past"]]
    with pytest.raises(ValueError, match="reshape"):
        Judge(GuardConfig(window=32)).load_state_dict(one.state_dict())


def actions(ladder, steps, possible=None):
    return [ladder.take(step, possible) for step in steps]


def test_the_ladder():
    assert actions(Ladder(GuardConfig("off")), [1, 2]) == [None, None]
    assert actions(Ladder(GuardConfig("warn")), [1, 2]) == ["warn", "warn"]
    assert actions(Ladder(GuardConfig("skip", skips=2)), [1, 2, 3]) == ["skip", "skip", "stop"]
    everything = GuardConfig("warn+skip+cut+kss+rollback+stop", skips=2, cuts=2, rollbacks=1)
    assert actions(Ladder(everything), range(6)) == ["skip", "skip", "cut", "kss", "rollback", "stop"]
    assert actions(Ladder(everything), [0, 100, 200, 300, 400]) == ["skip", "skip", "cut", "cut", "kss"], (
        "calm between them"
    )


def test_an_action_that_cannot_be_taken_is_left_out():
    config = GuardConfig("skip+rollback", skips=1)
    assert actions(Ladder(config), [1, 2], frozenset({"skip", "rollback"})) == ["skip", "rollback"]
    assert actions(Ladder(config), [1, 2], frozenset({"skip", "stop"})) == ["skip", "stop"], "no checkpoint is healthy"
    assert actions(Ladder(config), [1, 2], frozenset({"skip"})) == ["skip", None], "and it is too early to stop"


def test_the_ladder_goes_on_where_it_was():
    one, other = (Ladder(GuardConfig("skip+cut", skips=2)) for _ in range(2))
    actions(one, [1, 2])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.used == one.used and other.take(3) == one.take(3) == "cut"


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"actions": "jump"}, "actions"),
        ({"actions": "skip+skip"}, "actions"),
        ({"actions": ""}, "actions"),
        ({"actions": 3}, "actions"),
        ({"loss": 0}, "loss"),
        ({"norm": math.nan}, "norm"),
        ({"patience": 0}, "patience"),
        ({"window": 4}, "window"),
        ({"cut": 1.5}, "cut"),
        ({"skips": 0}, "skips"),
    ],
)
def test_settings_that_make_no_sense(wrong, name):
    with pytest.raises(InputError, match=f"{name}="):
        GuardConfig(**wrong)
