"""Alarms reach the trackers that know alerts, once each; a tracker that fails does not end the run."""

import json

import pytest

from hf_rksp import RKSPCallback
from hf_rksp.training import alerts
from hf_rksp.training.monitors.base import Alarm, Monitor, Reading
from tests.training.common import gpt2, history, trained


class Alarming(Monitor):
    """Raises an alarm at step 1, and says of step 2 that something else happened."""

    name = "alarming"

    def due(self, step, last_step):
        return step in (1, 2)

    def step_end(self, step, main_process):
        what = "alarm" if step == 1 else "unlocked"
        return Reading(self.name, step, {"level": 1.0}, alarms=[Alarm("too high", "It is too high.", what=what)])
        yield []


def run(tmp_path, **changes):
    return trained(tmp_path, gpt2(), kss=False, callbacks=[RKSPCallback(False, monitors=[Alarming()])], **changes)


def test_an_alarm_is_an_alert_of_trackio(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    sent = []
    monkeypatch.setattr(trackio, "alert", lambda **alert: sent.append(alert))
    run(tmp_path, report_to="trackio")
    assert sent == [
        {"title": "alarming: too high", "text": "Step 1: It is too high.", "level": trackio.AlertLevel.WARN}
    ]


def test_every_tracker_gets_their_number(tmp_path):
    done = run(tmp_path)
    assert [row.get("alarming/alarms") for row in history(done)[:4]] == [None, 1.0, 1.0, 1.0]
    state = json.loads((tmp_path / "rksp_history.jsonl").read_text().splitlines()[-1])
    assert state["alarming/alarms"] == 1.0


def test_without_such_a_tracker_nothing_is_sent():
    assert alerts.sender([]) is None and alerts.sender("none") is None and alerts.sender(["tensorboard"]) is None


def test_a_tracker_that_fails_is_said_once(monkeypatch, caplog):
    def broken(title, text):
        raise ConnectionError("no network")

    monkeypatch.setitem(alerts._TRACKERS, "trackio", broken)
    send = alerts.sender(["trackio"])
    send("a", "b")
    send("a", "b")
    assert caplog.text.count("trackio did not take an alert: ConnectionError: no network") == 1


def test_a_tracker_that_fails_once_gets_the_next_alert(monkeypatch):
    calls = []

    def shaky(title, text):
        calls.append(title)
        if len(calls) in (1, *range(4, 40)):
            raise TimeoutError

    monkeypatch.setitem(alerts._TRACKERS, "trackio", shaky)
    send = alerts.sender(["trackio"])
    for _ in range(20):
        send("a", "b")
    assert len(calls) == 8, "after five failures in a row it is left alone"


def test_without_a_run_of_the_tracker_nothing_is_sent(monkeypatch):
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr(trackio, "alert", lambda **alert: pytest.fail("sent"))
    alerts.sender(["trackio", "wandb"])("a", "b")
