"""The live page in a real browser: it follows the run, leaves the reader where he is, and asks nobody else."""

import json
import threading

import pytest

from hf_rksp.report.run.live import LivePage
from hf_rksp.report.run.server import LiveServer
from tests.browser.histories import calm, log, profile
from tests.browser.test_timeline_page import wait_until

pytestmark = pytest.mark.browser


class Site:
    """A run that is served, and what is appended to it."""

    def __init__(self, folder, port=0):
        self.file = folder / "rksp_history.jsonl"
        self.server = LiveServer(LivePage([folder]), port)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def append(self, rows):
        with self.file.open("a") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)

    def as_uri(self):
        return self.server.address

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.close()


def framed(page):
    """The frame with the page of the run, once it is shown."""
    wait_until(page, lambda: page.locator("iframe:not(.coming)").count() == 1)
    return page.frame_locator("iframe:not(.coming)")


def step(page):
    return page.locator("#step").text_content()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_it_waits_then_follows_the_run_and_leaves_the_reader_where_he_is(site, open_page, theme, width):
    page = open_page(site, width, theme)
    assert page.locator("#state").text_content() == "Waiting for the run"
    rows = calm(steps=20)
    site.append(rows[:15])
    frame = framed(page)
    assert frame.locator("h1").text_content() == "tiny" and step(page) == "step 11"
    assert page.title().startswith("tiny")
    # The reader looks at an early reading of one layer, far down the page, with a table open.
    frame.locator("#step").fill("1")
    frame.locator("#layer").select_option("2")
    frame.locator("details").first.evaluate("one => { one.open = true; }")
    inner = next(one for one in page.frames if one != page.main_frame)
    inner.evaluate("window.scrollTo({top: 400, behavior: 'instant'})")
    at = inner.evaluate("window.scrollY")
    site.append(rows[15:])
    wait_until(page, lambda: step(page) == "step 20")
    wait_until(page, lambda: page.locator("iframe").count() == 1 and inner.is_detached())
    frame = framed(page)
    inner = next(one for one in page.frames if one != page.main_frame)
    assert frame.locator("#at").text_content() == "step 5" and frame.locator("#layer").input_value() == "2"
    assert frame.locator("details").first.evaluate("one => one.open")
    # Where text above has grown by a line, the browser keeps what is seen in its place.
    assert abs(inner.evaluate("window.scrollY") - at) < 100
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "no sideways scrolling"
    assert page.trouble == []


def test_at_the_newest_reading_it_stays_there_and_keeps_the_keyboard(site, open_page):
    rows = calm(steps=20)
    site.append(rows[:15])
    page = open_page(site)
    frame = framed(page)
    slider = frame.locator("#step")
    slider.focus()
    page.keyboard.press("End")
    assert frame.locator("#at").text_content() == "step 10"
    site.append(rows[15:])
    wait_until(page, lambda: frame.locator("#at").text_content() == "step 20")
    inner = next(one for one in page.frames if one != page.main_frame)
    assert inner.evaluate("document.activeElement.id") == "step"
    page.keyboard.press("ArrowLeft")
    assert frame.locator("#at").text_content() == "step 15"


def test_a_movie_that_plays_is_not_taken_away(site, open_page):
    site.append(calm(steps=200, every=2))
    page = open_page(site)
    frame = framed(page)
    frame.locator("#play").click()
    site.append([log(201, 3.0), profile(202, [])])
    page.wait_for_timeout(3000)
    assert frame.locator("#play").text_content() == "Pause"
    frame.locator("#play").click()
    wait_until(page, lambda: "202" in frame.locator("body").text_content())


def test_a_broken_history_is_said_and_what_was_shown_stays(site, open_page):
    site.append(calm()[:5])
    page = open_page(site)
    framed(page)
    site.append([["no row"]])
    wait_until(page, lambda: page.locator("#trouble").is_visible())
    assert "line 6" in page.locator("#trouble").text_content()
    assert page.locator("iframe").count() == 1


def test_an_end_of_the_server_is_said_and_another_server_shows_its_own_run(site, open_page, tmp_path):
    site.append(calm("first"))
    page = open_page(site)
    framed(page)
    port = site.server.server_address[1]
    site.close()
    page.wait_for_timeout(4000)  # two polls
    wait_until(page, lambda: page.locator("#state").text_content() == "rksp watch does not answer")
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "rksp_history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in calm("second", steps=10)))
    again = Site(folder, port)
    page.wait_for_timeout(2000)
    wait_until(
        page, lambda: "steps 0 to 10" in page.frame_locator("iframe:not(.coming)").locator(".facts").text_content()
    )
    again.close()


def test_boxes_keep_their_places_and_updates_can_be_paused(site, open_page):
    rows = calm(steps=200, every=1)
    site.append(rows[:300])
    page = open_page(site)
    frame = framed(page)
    frame.locator("details").first.evaluate("one => { one.open = true; }")
    box = frame.locator("details .scroll").first
    box.evaluate("one => { one.scrollTop = 300; one.focus(); }")
    page.locator("#hold").click()
    site.append(rows[300:320])
    page.wait_for_timeout(4500)
    assert page.locator("#state").text_content() == "Updates held"
    inner = next(one for one in page.frames if one != page.main_frame)
    page.locator("#hold").click()
    wait_until(page, lambda: page.locator("iframe").count() == 1 and inner.is_detached())
    assert framed(page).locator("details .scroll").first.evaluate("one => one.scrollTop") == 300
    assert page.locator("#state").text_content() == "Following the run" and page.trouble == []
