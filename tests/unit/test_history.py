"""Schema 2: unknown kinds are kept, attempts are told apart, quantities travel with the run, a growing file is read once."""

import json

import pytest

from hf_rksp.errors import SchemaError
from hf_rksp.history.read import read_history
from hf_rksp.history.schema import described
from hf_rksp.history.tail import Tail
from hf_rksp.quantities import LAYER, QUANTITIES, SHARES, UNESTIMABLE, Quantity
from tests.browser.histories import calm, layer, log, profile, run, write


def row(kind, step, **values):
    return {"kind": kind, "step": step} | values


def reading(monitor, step, **values):
    return row("reading", step, monitor=monitor, values=values)


def begun(**more):
    return {"kind": "run", "schema_version": 2, "attempt": 0} | more


def test_readings_of_several_monitors_at_one_step(tmp_path):
    rows = [begun(), reading("b", 1, x=1), reading("a", 1, x=2), reading("a", 0, x=3), reading("a", 1, x=4)]
    history = read_history(write(tmp_path, rows))
    assert [(r["step"], r["monitor"], r["values"]["x"]) for r in history.readings] == [
        (0, "a", 3),
        (1, "a", 4),
        (1, "b", 1),
    ]
    assert [r["values"]["x"] for r in history.of("a")] == [3, 4] and history.spectra == ()


def test_kinds_of_a_later_release_are_kept(tmp_path):
    rows = [begun(), {"kind": "weather", "step": 1.5, "sun": True}, log(1, 2.0)]
    history = read_history(write(tmp_path, rows))
    assert history.others == (rows[1],) and len(history.logs) == 1


def test_what_a_run_goes_back_from_is_set_aside_and_stays(tmp_path):
    rows = [begun(), log(1, 4.0), log(2, 3.0), reading("m", 2), reading("m", 3), log(3, 9.0)]
    rows += [row("event", 3, by="guard", what="alarm", text="It fails."), begun(attempt=1)]
    rows += [row("event", 2, by="guard", what="rollback", to=2, attempt=1), log(3, 2.0)]
    history = read_history(write(tmp_path, rows))
    assert [(r["step"], r["loss"]) for r in history.logs] == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert [r["step"] for r in history.readings] == [2]
    assert [(r["kind"], r["step"]) for r in history.abandoned] == [("log", 3), ("reading", 3)]
    assert [r["what"] for r in history.events] == ["alarm", "rollback"]


def test_quantities_travel_with_the_run(tmp_path):
    own = (Quantity("x", "an unknown number", "ξ", "share", limit=0.95, limit_title="alarm", logarithmic=True),)
    rows = [
        begun(quantities=described("m", own)),
        {"kind": "run", "schema_version": 2, "quantities": {"m/y": {"title": "y"}, "bad": 3}},
    ]
    found = read_history(write(tmp_path, rows)).quantities
    assert found["m/x"] == Quantity("m/x", "an unknown number", "ξ", "share", "", 0.95, "alarm", True)
    assert found["m/y"].title == "y" and set(found) == {"m/x", "m/y"}


@pytest.mark.parametrize(
    "broken", [{"unit": "weight"}, {"title": 3, "limit": "high", "symbol": None, "per_layer": 1}, {}]
)
def test_a_description_that_is_broken_gets_defaults(broken):
    assert Quantity.described("m/x", broken) == Quantity("m/x", "m/x")


def test_profiles_of_schema_1_are_readings(tmp_path):
    rows = [
        run(),
        profile(0, [layer(0, near_unit_mass=0.2), layer(1, near_unit_mass=0.4, spectral_radius=None)]),
        log(1, 2.0),
    ]
    history = read_history(write(tmp_path, rows))
    (found,) = history.spectra
    assert found["monitor"] == "spectrum" and found["values"]["near_unit_mass/max"] == 0.4
    assert found["values"]["near_unit_mass/mean"] == pytest.approx(0.3)
    assert found["values"]["spectral_radius/max"] == 1.2
    assert history.quantities["spectrum/near_unit_mass/max"].unit == "share"
    assert history.quantities["spectrum/near_unit_mass"].per_layer


def test_a_line_that_is_cut_short_may_stand_where_a_run_was_resumed_and_nowhere_else(tmp_path):
    lines = [json.dumps(begun()), json.dumps(log(1, 2.0)), '{"kind": "log", "st']
    file = tmp_path / "rksp_history.jsonl"
    file.write_text("\n".join([*lines, json.dumps(begun(attempt=1)), json.dumps(log(2, 1.0))]) + "\n")
    assert len(read_history(file).logs) == 2
    file.write_text("\n".join([*lines, json.dumps(log(2, 1.0))]) + "\n")
    with pytest.raises(SchemaError, match="line 3: not JSON"):
        read_history(file)
    file.write_text("\n".join([*lines, lines[-1], json.dumps(begun(attempt=1))]) + "\n")
    with pytest.raises(SchemaError, match="line 3: not JSON"):
        read_history(file)


def test_a_file_that_grows_is_read_once(tmp_path):
    file = tmp_path / "rksp_history.jsonl"
    tail = Tail(file)
    assert not tail.poll()
    whole = write(tmp_path / "whole", calm())
    raw = whole.read_bytes()
    pieces = [raw[i : i + 777] for i in range(0, len(raw), 777)]
    with file.open("wb") as stream:
        for place, piece in enumerate(pieces):
            stream.write(piece)
            stream.flush()
            assert tail.poll() == (b"\n" in piece) and tail.offset == min((place + 1) * 777, len(raw))
    assert not tail.poll()
    found, expected = tail.history(), read_history(whole)
    assert (found.logs, found.readings, found.quantities) == (expected.logs, expected.readings, expected.quantities)


def test_a_file_that_is_another_one_is_read_from_its_beginning(tmp_path):
    file = write(tmp_path, calm())
    tail = Tail(file)
    tail.poll()
    (tmp_path / "new").write_text(json.dumps(begun()) + "\n" + json.dumps(log(1, 2.0)) + "\n")
    (tmp_path / "new").replace(file)
    assert tail.poll() and len(tail.history().logs) == 1
    file.write_text(json.dumps(begun()) + "\n")  # shorter, in place
    assert tail.poll() and not tail.history().logs


def test_lists_of_quantities():
    assert set(SHARES) == {name for name in QUANTITIES if name.endswith(("_mass", "_fraction", "_departure"))}
    assert UNESTIMABLE == ("eigenvector_condition", "reliable_fraction")
    assert [key for key, quantity in LAYER.items() if quantity.key != key] == []
