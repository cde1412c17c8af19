"""Histories and their page: the rules of the file, stable bytes, right numbers, honest words, safe text."""

import json
import math
import os
import random
import re
import threading

import pytest

from hf_rksp.errors import InputError, OutputError, SchemaError
from hf_rksp.report import read_history, render_timeline, write_timeline
from hf_rksp.report.kit.plane import Cloud
from hf_rksp.report.run.curves import across, figure
from hf_rksp.report.run.events import event_table, events_of, happened_figures
from hf_rksp.report.run.movie import DIGITS, SHIFT, Movie, encode
from hf_rksp.report.run.numbers import Run
from hf_rksp.report.run.readings import groups_of
from hf_rksp.report.run.rise import largest_rise
from hf_rksp.report.run.series import Series
from hf_rksp.report.run.words import cautions, measured, story
from tests.browser.histories import (
    bare,
    broken,
    calm,
    eventful,
    hostile,
    hostile_events,
    layer,
    log,
    profile,
    read,
    run,
    shaped,
    write,
)
from tests.unit.test_report_render import Page, visible

BOUNDS = (0.9, 1.05, 0.8)


def runs_of(folder, *samples):
    return [Run(history) for history in read(folder, *samples)]


def drawn(runs):
    """Key -> figure and the places of the runs in it, of all charts over the steps."""
    steps, names = across(runs), [run.name for run in runs]
    found = {figure.key: (figure, places) for figure, places in happened_figures(runs, steps)}
    curves = [curve for group in groups_of(runs) for curve in group.curves]
    return found | {curve.key: (figure(curve, steps, names), curve.runs) for curve in curves}


def movie_of(page):
    return json.loads(re.search(r'<script type="application/json" id="frames">(.*?)</script>', page)[1])


# The file


def test_reads_a_file_or_its_folder(tmp_path):
    file = write(tmp_path / "one", calm())
    history = read_history(file)
    assert history == read_history(tmp_path / "one") == read_history(str(file))
    assert history.name == "calm" and len(history.logs) == 20 and len(history.spectra) == 5
    assert [row["step"] for row in history.spectra] == [0, 5, 10, 15, 20]


@pytest.mark.parametrize("name", [None, "", "  ", 3])
def test_name_is_the_folder_where_the_setup_has_none(tmp_path, name):
    assert read_history(write(tmp_path / "lr_1e-3", [run(name)])).name == "lr_1e-3"


def test_a_folder_as_name_is_cut_to_its_end(tmp_path):
    assert read_history(write(tmp_path, [run("/home/me/runs/third")])).name == "third"


def test_later_lines_replace_earlier_ones_of_their_kind_and_step(tmp_path):
    rows = [run("before"), log(2, 3.0), log(1, 4.0), profile(1, [layer(0)]), run("after"), log(2, 2.0), profile(1, [])]
    history = read_history(write(tmp_path, rows))
    assert history.name == "after"
    assert [(row["step"], row["loss"]) for row in history.logs] == [(1, 4.0), (2, 2.0)]
    assert [row["layers"] for row in history.readings] == [[]]


def test_evaluation_is_added_to_its_step(tmp_path):
    rows = [run(), log(1, 4.0), {"kind": "log", "step": 1, "eval_loss": 3.5}]
    rows += [log(2, None), {"kind": "log", "step": 2, "loss": None, "eval_loss": None}]
    rows += [{"kind": "log", "step": 3, "eval_loss": 3.0}]
    run_ = Run(read_history(write(tmp_path, rows)))
    assert list(run_.logged("loss")) == [(1, 4.0), (2, None)]
    assert list(run_.logged("eval_loss")) == [(1, 3.5), (2, None), (3, 3.0)]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_last_line_cut_short_is_ignored(tmp_path, cut):
    file = write(tmp_path, calm())
    whole = len(read_history(file).logs)
    with file.open("ab") as stream:
        stream.write(json.dumps(log(21, 1.0) | {"note": "é"}, ensure_ascii=False).encode()[:cut])
    assert len(read_history(file).logs) == whole


def test_a_last_line_cut_inside_a_letter_is_ignored(tmp_path):
    file = write(tmp_path, calm())
    with file.open("ab") as stream:
        stream.write('{"kind":"log","note":"é'.encode()[:-1])
    assert len(read_history(file).logs) == 20


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"kind":"log","st', "not JSON"),
        ('{"kind":"log","step":3,"loss":NaN}', "NaN is not strict JSON"),
        ("[1]", "no kind"),
        ('{"step":1}', "no kind"),
        ('{"kind":"log","step":1.5}', "step=1.5: pass a whole number"),
        ('{"kind":"log","step":true}', "step=True"),
        ('{"kind":"log","step":-1}', "step=-1"),
        ('{"kind":"profile","step":1,"layers":[1]}', "list of objects"),
        ('{"kind":"reading","monitor":"m","step":1,"layers":{}}', "list of objects"),
        ('{"kind":"reading","monitor":"m","step":1,"values":[1]}', "values has to be an object"),
        ('{"kind":"reading","step":1}', "names no monitor"),
        ('{"kind":"event"}', "step=None"),
        ('{"kind":"run","schema_version":3}', "schema_version=3 is of a newer release"),
        ('{"kind":"run","schema_version":0}', "schema_version=0"),
        ('{"kind":"run","schema_version":true}', "schema_version=True"),
        ('{"kind":"run"}', "schema_version=None"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, said):
    file = tmp_path / "rksp_history.jsonl"
    file.write_text("\n".join([json.dumps(run()), json.dumps(log(1, 2.0)), line, json.dumps(log(2, 2.0))]) + "\n")
    with pytest.raises(SchemaError, match=r"rksp_history\.jsonl, line 3: ") as error:
        read_history(file)
    assert said in str(error.value)


def test_a_last_line_that_is_whole_but_wrong_is_an_error(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(run()) + '\n{"kind":"log","step":1,"loss":NaN}')
    with pytest.raises(SchemaError, match="line 2"):
        read_history(file)


def test_files_that_are_no_history(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "late.jsonl").write_text(json.dumps(log(1, 2.0)) + "\n" + json.dumps(run()) + "\n")
    with pytest.raises(SchemaError, match="no run line"):
        read_history(tmp_path / "empty.jsonl")
    with pytest.raises(SchemaError, match="line 1: a history begins"):
        read_history(tmp_path / "late.jsonl")
    with pytest.raises(InputError, match="No such file"):
        read_history(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="No such file"):
        read_history(tmp_path)


# The page

SAMPLES = {
    "one": (calm,),
    "two": (calm, shaped),
    "broken": (calm, broken),
    "hostile": (hostile,),
    "hostile events": (hostile_events,),
    "bare": (bare,),
    "six": (calm, broken, shaped, calm, calm, calm),
    "eventful": (eventful, calm),
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_twice_is_the_same_and_well_formed(tmp_path, sample):
    page = render_timeline(read(tmp_path / "a", *(make() for make in SAMPLES[sample])))
    assert page == render_timeline(read(tmp_path / "b", *(make() for make in SAMPLES[sample])))
    parsed = Page(page)
    names = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(names) == len(set(names))
    for _, name, value in parsed.attributes:
        if name in ("aria-labelledby", "aria-describedby", "for"):
            assert set(value.split()) <= set(names)
        assert name not in ("src", "onload", "onclick", "onerror")
        assert name != "href" or value.startswith(("#", "data:image/svg"))
    assert str(tmp_path) not in page


def test_hostile_text_is_text(tmp_path):
    page = render_timeline(read(tmp_path, hostile()))
    assert "<img" not in page and page.count("<script") == 2
    assert movie_of(page)["layers"][0].startswith("</script><img")


def test_hostile_events_and_quantities_are_text(tmp_path):
    page = render_timeline(read(tmp_path, hostile_events()))
    assert "<img" not in page and page.count("<script") == 2
    assert "<img src=x onerror=alert(1)>" in "".join(Page(page).text)


def test_keys_that_differ_give_charts_that_differ(tmp_path):
    keys = ("a/b", "a_b", "a-b", "a/é", "a/ü")
    rows = [run(), *(log(step, 1.0, **dict.fromkeys(keys, float(step))) for step in (1, 2))]
    assert len(drawn(runs_of(tmp_path, rows))) == len(keys) + 3  # and loss, gradient norm, learning rate


def test_runs_of_one_name_are_told_apart(tmp_path):
    page = visible(render_timeline(read(tmp_path, calm("x"), calm("x"), calm("x"))))
    assert "x (2)" in page and "x (3)" in page


def test_too_many_and_none(tmp_path):
    with pytest.raises(InputError, match="0 histories"):
        render_timeline([])
    with pytest.raises(InputError, match="7 histories"):
        render_timeline(read(tmp_path, *[calm()] * 7))


def test_story_of_a_calm_run(tmp_path):
    (run_,) = runs_of(tmp_path, calm())
    assert story(run_) == [
        "Loss 3.95 at step 1, 3.00 at step 20.",
        "Largest gradient norm 1.50, at step 11.",
    ]
    assert measured(run_, "spectrum") == [
        "Spectrum was measured 5 times, step 0 to 20: near-unit mass, mean over layers 0.220 → 0.820; near-unit mass, largest "
        "layer 0.240 → 0.840; expansive mass, mean over layers 0.250 → 0.250; nonlinearity ratio, mean over layers 0.200 → "
        "0.200; spectral radius, largest layer 1.30 → 2.30; eigenvector condition, largest layer 12.5 → 12.5.",
    ]


def test_story_of_a_broken_run(tmp_path):
    (run_,) = runs_of(tmp_path, broken())
    sentences = story(run_)
    assert sentences[:2] == [
        "Loss 3.95 at step 1, 3.40 at step 12.",
        "The loss is not a finite number from step 13 to the end, step 20.",
    ]
    assert "The gradient norm is not a finite number from step 13 to the end, step 20." in sentences
    assert measured(run_, "spectrum")[-1] == "The last reading is at step 12; training continued to step 20."


def test_story_of_odd_runs(tmp_path):
    samples = [
        [run(), log(1, 2.0), log(2, None), log(3, 2.0), log(4, None), log(5, 1.0)],
        [run(), log(1, None), log(2, None)],
        bare(),
        [run(), profile(3, [layer(0), layer(1)])],
        [run(), profile(0, [layer(0), layer(1)]), profile(5, [layer(1)])],
    ]
    runs = runs_of(tmp_path, *samples)
    stories = [story(run_) for run_ in runs]
    assert "The loss is not a finite number at 2 of 5 logged steps, first at step 2." in stories[0]
    assert "The loss is not a finite number at any of 2 logged steps." in stories[1]
    assert stories[2] == ["No loss was logged.", "Nothing was measured besides the log."]
    assert measured(runs[3], "spectrum")[-1].startswith(
        "Spectrum was measured once, at step 3: near-unit mass, mean over layers 0.250"
    )
    assert measured(runs[4], "spectrum")[-1] == "In 1 of 2 readings a layer is missing, first at step 5."


def test_story_says_the_event(tmp_path):
    """First and last loss are not what happened in a run that left its minimum, went back, and was lost."""
    (run_,) = runs_of(tmp_path, eventful())
    text = " ".join(story(run_))
    rise = re.search(
        r"minimum of (0\.\d+) at step (\d+)(?:, stayed near it until step (\d+))? and (?:then )?rose to ([\d.]+) at",
        text,
    )
    assert float(rise[1]) == pytest.approx(0.4, abs=0.03) and 690 <= int(rise[3] or rise[2]) <= 725
    assert float(rise[4]) == pytest.approx(5.2, abs=0.2)
    for part in (
        "It did not come back: ",
        "The loss is not a finite number from step 990 to the end, step 1,000.",
        "Largest gradient norm 300, at step 725, ",
        " times the median.",
        "Alarm (weather), 2 times, first at step 721 in h.2: Rain of 12.1 is above 10.",
        "Rollback (umbrella) at step 820: Training went back to step 600.",
        "224 rows belong to attempts that the run went back from; the charts show them pale.",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([4, 3, 2, 1, 3], ["The loss left its minimum of 1.00 at step 4 and rose to 3.00 at step 5."]),
        (
            [4, 3, 2, 9, 2.5, 2.2, 1],
            ["The loss left its level of 2.00 at step 3 and rose to 9.00 at step 4.", "It was back at 2.20 at step 6."],
        ),
        (
            [4, 1, 3, 1, 5, 1, 1.1],
            [
                "The loss rose above its minimum of 1.00 on 2 occasions, the first after step 2, the largest to 5.00 at step 5.",
                "It was back at 1.00 at step 6.",
            ],
        ),
        ([3, 4, 50], ["The loss left its minimum of 3.00 at step 1 and rose to 50.0 at step 3."]),
        ([4, 3, 2, 1.05, 1, 1.1], []),
        ([4, 3], []),
        ([2, 2, 2], []),
    ],
)  # fmt: skip
def test_a_rise_of_the_loss(tmp_path, losses, said):
    rows = [run(), *(log(step, float(loss)) for step, loss in enumerate(losses, 1))]
    assert [line for line in story(runs_of(tmp_path, rows)[0]) if "rose" in line or "back at" in line] == said


def test_noise_is_no_rise():
    rng = random.Random(0)
    for noise in (0.01, 0.3, 1.0):
        calm_loss = [(step, 3 * math.exp(-step / 3_000) + rng.gauss(0, noise)) for step in range(20_000)]
        assert largest_rise(Series(calm_loss)) is None
    rising = [(step, value + (4.0 if step > 15_000 else 0.0)) for step, value in calm_loss]
    assert largest_rise(Series(rising)) is None  # with this much noise no one could tell
    rising = [(step, (0.1 if step < 15_000 else 4.0) + rng.gauss(0, 0.1)) for step in range(20_000)]
    assert 14_990 <= largest_rise(Series(rising)).left_step <= 14_999 and largest_rise(Series(rising)).times == 1


def test_marks_of_events(tmp_path):
    runs = runs_of(tmp_path, eventful())
    figure, _ = drawn(runs)["loss"]
    assert figure.title == "Events and loss"
    assert figure.body.count('class="event k0"') == 2 and figure.body.count('class="event k0 gone"') == 1
    assert figure.body.count('class="back"') == 1 and figure.body.count('class="run gone"') == 1
    assert [event.gone for event in events_of(runs[0])] == [True, False, False]
    page = render_timeline([runs[0].history])
    assert page.count("<em>abandoned</em>") == 1


def test_very_many_events_are_cut_in_the_middle(tmp_path):
    events = [
        {"kind": "event", "step": step, "by": "weather", "what": "alarm", "text": "Wet."} for step in range(1_000)
    ]
    runs = runs_of(tmp_path, [run(), log(1, 2.0), log(999, 1.0), *events])
    table = event_table(runs)
    assert [event.step for event in table.rows] == [*range(100), *range(900, 1_000)] and table.left_out == 800
    assert "when" not in drawn(runs)["loss"][0].body
    assert "800 events between" in visible(render_timeline([runs[0].history]))


def test_the_page_begins_with_what_happened(tmp_path):
    page = visible(render_timeline(read(tmp_path, eventful(), calm())))
    order = [
        "Loss 4",
        "Events and loss",
        "Gradient norm",
        "What was measured",
        "by layer and step",
        "Eigenvalues over the steps",
    ]
    order += [
        "In numbers",
        "Side by side",
        "Everything that was recorded about the set-up",
        "How the numbers are defined",
    ]
    places = [page.index(part, page.index("What happened", 200)) for part in order]
    assert places == sorted(places)


def test_cautions_fit_the_runs(tmp_path):
    batch = [row | {"data": "batch", "tokens": 64} if row["kind"] == "profile" else row for row in calm("b")]
    term = [row | {"kss/task_loss": row["loss"] - 0.5} if row["kind"] == "log" else row for row in shaped()]
    one, mixed = runs_of(tmp_path, calm()), runs_of(tmp_path, batch, term)
    assert not any("comparable" in text or "batch sees" in text or "term" in text for text in cautions(one))
    sentences = " ".join(cautions(mixed))
    for part in ("not comparable", "sees other tokens", "different numbers of tokens", "kss/task_loss", "chance"):
        assert part in sentences
    same = [row | {"kss/task_loss": row["loss"]} if row["kind"] == "log" else row for row in calm()]
    assert "task_loss" not in " ".join(cautions(runs_of(tmp_path, same)))


def test_side_by_side_and_what_differs(tmp_path):
    page = Page(render_timeline(read(tmp_path, calm(), broken(), shaped())))
    text = " ".join(page.text)
    assert re.search(r"Loss not finite\s+never\s+first at 13\s+never", text)
    assert "setup.kss.schedule" in text and "setup.learning_rate" not in text
    assert "GPT2LMHeadModel" in text and "512, fixed probe" in text


def test_charts_are_those_with_numbers(tmp_path):
    charts = drawn(runs_of(tmp_path, calm(), shaped()))
    for key in ("loss", "grad_norm", "learning_rate", "spectrum-spectral_radius-max", "spectrum-near_unit_mass-mean"):
        assert charts[key][1] == [0, 1]
    assert charts["kss-loss"][1] == charts["kss-own"][1] == [1]
    assert "eval_loss" not in charts and "kss-task_loss" not in charts
    assert drawn(runs_of(tmp_path / "bare", bare())) == {}


def test_missing_numbers_break_the_line_and_are_marked(tmp_path):
    (run_,) = runs_of(
        tmp_path, [run(), *(log(step, None if step in (3, 4, 8) else 2.0 + step) for step in range(1, 9))]
    )
    assert run_.logged("loss").gaps() == [(3, 4), (8, 8)]
    figure, _ = drawn([run_])["loss"]
    assert figure.body.count('class="run"') == 2 and figure.body.count('class="lost"') == 2
    assert "first at step 3" in figure.caption


def test_a_spike_survives_thinning(tmp_path):
    rows = [run(), *(log(step, 2.0, 1.0 if step != 5001 else 900.0) for step in range(1, 10_001))]
    figure, _ = drawn(runs_of(tmp_path, rows))["grad_norm"]
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", re.search(r'class="run" d="([^"]+)"', figure.body)[1])
    heights = [float(y) for _, y in points]
    assert len(points) < 3_000 and heights.index(min(heights)) == pytest.approx(len(points) / 2, rel=0.1)
    assert max(heights) - min(heights) > 100


def test_frames_hold_the_eigenvalues(tmp_path):
    rows = shaped()
    histories = read(tmp_path, rows)
    movie, data = Movie([Run(history) for history in histories], BOUNDS), movie_of(render_timeline(histories))
    frames = data["runs"][0]["frames"]
    assert data["steps"] == [0, 5, 10, 15, 20] and [frame["step"] for frame in frames] == data["steps"]
    assert frames[-1]["layers"][0][4] >= 1 and frames[0]["all"][:2] == [24, 0]  # 60 lies outside; nothing at the start
    unit = 384 / 2 * 4 / movie.window.half
    for frame, row in zip(frames[:-1], [row for row in rows if row["kind"] == "profile"], strict=False):
        for place, mirrored, code, total, *_ in frame["layers"]:
            digits = [DIGITS.index(letter) for letter in code]
            numbers = [64 * a + b - SHIFT for a, b in zip(digits[::2], digits[1::2], strict=True)]
            spots = {
                complex(x / unit + movie.window.middle, y / unit)
                for x, y in zip(numbers[::2], numbers[1::2], strict=True)
            }
            spots |= {spot.conjugate() for spot in spots} if mirrored else set()
            values = [complex(*pair) for pair in row["layers"][place]["eigenvalues"]]
            assert total == len(values)
            assert all(min(abs(value - spot) for spot in spots) < 2 / unit for value in values)


def test_encoding_round_trip():
    points = [(-768, -768), (0, 0), (768, 768), (-1, 5)]
    code = encode(Cloud(points[:2], points[2:], False, 4, 4))
    assert len(code) == 16
    numbers = [64 * DIGITS.index(code[at]) + DIGITS.index(code[at + 1]) - SHIFT for at in range(0, 16, 2)]
    assert list(zip(numbers[::2], numbers[1::2], strict=True)) == points


def test_one_frame_that_blows_up_does_not_shrink_the_others(tmp_path):
    rows = calm()
    rows[-2]["layers"] = [layer(i, 8, 1e6) for i in range(3)]
    movie = Movie(runs_of(tmp_path, rows), BOUNDS)
    assert movie.window.half < 5


def test_size(tmp_path):
    rows = calm(steps=490, every=10, layers=12, modes=64)
    assert sum(row["kind"] == "profile" for row in rows) == 50
    one = render_timeline(read(tmp_path / "1", rows))
    assert len(one.encode()) < 750_000
    two = render_timeline(read(tmp_path / "2", rows, rows))
    assert len(two.encode()) < 1_500_000
    assert "Thinned" not in two and "too many layers" not in one


def test_definitions_and_table_are_there(tmp_path):
    page = visible(render_timeline(read(tmp_path, calm())))
    for term in (
        "M~1, near-unit mass",
        "ρ, spectral radius",
        "κ(V), eigenvector condition",
        "Henrici departure",
        "Step",
    ):
        assert term in page
    assert "Kreiss" not in page
    assert "0.220" in page and "h.2" in page


# Writing


def test_written_aside_and_moved(tmp_path, monkeypatch):
    histories = read(tmp_path / "runs", calm())
    path = write_timeline(histories, tmp_path / "site" / "page.html")
    assert path.read_text("utf-8") == render_timeline(histories)
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]
    path.write_text("before")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        write_timeline(histories, path)
    assert path.read_text() == "before" and [entry.name for entry in path.parent.iterdir()] == ["page.html"]


def test_refuses_a_folder_and_a_file_as_folder(tmp_path):
    histories = read(tmp_path / "runs", calm())
    with pytest.raises(OutputError, match="is a folder"):
        write_timeline(histories, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_timeline(histories, tmp_path / "file" / "page.html")


def test_of_several_histories_the_last_that_was_written(tmp_path):
    first = write(tmp_path, calm("first"))
    second = first.with_name("rksp_history_2.jsonl")
    second.write_text(write(tmp_path / "aside", calm("second")).read_text())
    tenth = first.with_name("rksp_history_10.jsonl")
    tenth.write_text(write(tmp_path / "aside", calm("tenth")).read_text())
    for order in ((first, second, tenth), (second, tenth, first), (tenth, first, second)):
        for place, file in enumerate(order):
            os.utime(file, (1e9 + place, 1e9 + place))
        assert read_history(tmp_path) == read_history(order[-1])
    for file in order:
        os.utime(file, (1e9, 1e9))
    assert read_history(tmp_path).name == "tenth"
    first.unlink()  # as after a search over hyperparameters
    assert read_history(tmp_path).name == "tenth"


def test_story_names_what_was_left_out(tmp_path):
    rows = [
        run(),
        *(log(step, 2.0, **{"kss/skipped": max(0.0, step - 3.0), "other/skipped": 0.0}) for step in range(1, 8)),
    ]
    (text,) = [line for line in story(runs_of(tmp_path, rows)[0]) if "skipped" in line]
    assert text == "KSS skipped 4 times (kss/skipped), first counted at step 4."
    rows[0] = run() | {
        "schema_version": 2,
        "quantities": {"kss/skipped": {"title": "layers left out", "unit": "count"}},
    }
    (text,) = [line for line in story(runs_of(tmp_path, rows)[0]) if "skipped" in line]
    assert text == "Layers left out: 4 (kss/skipped), first counted at step 4."


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_what_is_no_file_stays_what_it_is(tmp_path, name):
    """A device, a pipe, a link: written to, never replaced by a file of its name."""
    target, got = tmp_path / name, []
    if name == "pipe":
        os.mkfifo(target)
        reader = threading.Thread(target=lambda: got.append(target.read_bytes()), daemon=True)
        reader.start()
    else:
        target.symlink_to(tmp_path / "there")
    write_timeline([read_history(write(tmp_path / "one", calm()))], target)
    if name == "pipe":
        reader.join(10)
        assert target.is_fifo() and got[0].startswith(b"<!doctype html>")
    else:
        assert target.is_symlink() and (tmp_path / "there").read_bytes().startswith(b"<!doctype html>")
