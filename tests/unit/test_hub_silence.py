"""A Hub that does not answer is found out once, within seconds, and the cache is used instead."""

import time

import pytest

from hf_rksp.errors import ModelLoadError
from hf_rksp.inputs import ModelSource, hub, load_model


@pytest.fixture
def online(monkeypatch):
    """The libraries have not been told to stay away from the Hub, which no test may ask."""
    from datasets import config
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_asked", [])
    return constants


def test_silence_sends_the_libraries_to_the_cache(online, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "_ask", lambda endpoint: asked.append(endpoint) or "no route")
    with hub.hub_or_cache(needed=False):
        assert not online.HF_HUB_OFFLINE
    assert not asked
    for _ in range(3):
        with hub.hub_or_cache(), hub.hub_or_cache():
            assert online.HF_HUB_OFFLINE
        assert not online.HF_HUB_OFFLINE
    assert asked == [online.ENDPOINT]
    assert "does not answer: no route" in hub.hint()


def test_an_answer_changes_nothing(online, monkeypatch):
    monkeypatch.setattr(hub, "_ask", lambda endpoint: None)
    with hub.hub_or_cache():
        assert not online.HF_HUB_OFFLINE
    assert hub.hint() == ""


def test_the_mode_is_put_back_after_an_error(online, monkeypatch):
    monkeypatch.setattr(hub, "_ask", lambda endpoint: "no route")
    with pytest.raises(ZeroDivisionError), hub.hub_or_cache():
        1 / 0  # noqa: B018
    assert not online.HF_HUB_OFFLINE


def test_a_name_that_is_never_found_is_not_waited_for(online, monkeypatch):
    monkeypatch.setattr(hub, "_WAIT", 0.2)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: time.sleep(30))
    start = time.monotonic()
    assert hub.silence() == "no answer within 0.2 seconds" and time.monotonic() - start < 5


@pytest.mark.parametrize("source", [{"model": "some/model"}, {"init": "some/model"}])
def test_an_id_is_refused_within_seconds(online, monkeypatch, source):
    monkeypatch.setattr(online, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(ModelLoadError, match=r"some/model.*does not answer"):
        load_model(ModelSource(**source))
    assert time.monotonic() - start < 10
