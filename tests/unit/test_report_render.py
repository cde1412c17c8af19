"""HTML, Markdown and figures from the dict alone: complete, stable, small, and safe whatever the dict holds."""

import copy
import html
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from hf_rksp.errors import SchemaError
from hf_rksp.report import render_html, render_markdown
from hf_rksp.report.kit.text import size
from hf_rksp.report.profile.tables import LAYER_COLUMNS
from hf_rksp.report.profile.view import title_of
from tests.browser.samples import HOSTILE, awkward, hostile, many_layers, report

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Elements, their attributes, and the text; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text, self.attributes = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def visible(text):
    return " ".join("".join(Page(text).text).split())


@pytest.mark.parametrize("make", [report, awkward, hostile])
def test_twice_is_the_same_and_leaves_the_dict_alone(make):
    data = make()
    before = copy.deepcopy(data)
    assert render_html(data) == render_html(json.loads(json.dumps(data)))
    assert render_markdown(data) == render_markdown(json.loads(json.dumps(data)))
    assert data == before


@pytest.mark.parametrize("modes", [1024, 4096])
def test_size_with_a_hundred_layers(modes):
    page = render_html(many_layers(100, modes))
    assert len(page.encode()) <= 500_000
    assert "Thinned:" in page  # and said so


def test_not_thinned_where_there_is_room():
    data = many_layers(12, 768)
    page = render_html(data)
    assert "Thinned:" not in page
    assert sum(len(drawn) for drawn in re.findall(r"h0", page)) / 2 > 12 * 768 / 2 * 0.9  # half: the rest is mirrored


def test_thinning_keeps_the_share_of_every_band():
    from hf_rksp.report.kit.plane import cloud_of, eigenvalues_of, window_of

    values = eigenvalues_of(many_layers(1, 4096)["profile"]["layers"][0])
    window = window_of(values, 1.05)
    cloud = cloud_of(values, window, 200)
    assert len(cloud.inside) + len(cloud.outside) == 200
    unit = 384 / 2 * 4 / window.half

    def shares(moduli):
        return [sum(low <= m < high for m in moduli) / len(moduli) for low, high in ((0, 0.9), (0.9, 1.05), (1.05, 9))]

    drawn = shares([abs(complex(x / unit + window.middle, y / unit)) for x, y in cloud.inside])
    assert drawn == pytest.approx(shares([abs(v) for v in values]), abs=0.06)


@pytest.mark.parametrize("render", [render_html, lambda data: render_markdown(data)[0]])
def test_every_quantity_is_there(render):
    data = report()
    text = render(data)
    text = visible(text) if text.startswith("<!") else html.unescape(text).replace("\\", "")
    for head in {column.head for column in LAYER_COLUMNS}:
        assert head in text
    layer = data["profile"]["layers"][0]
    error = layer["standard_errors"]["near_unit_mass"]
    assert f"{layer['near_unit_mass']:.3f} ± {error:.3f}" in text
    for name in ("spectral_radius", "relative_update", "nonlinearity_ratio"):
        assert f"{layer[name]:#.3g}" in text
    for check in data["verdict"]["checks"]:
        assert check["id"] in text and check["title"] in text and check["remedy"] in text
    for sentence in (*data["verdict"]["reasons"], *data["verdict"]["conditions"]):
        assert sentence in text
    for word in (
        "2602.22988",
        "rksp audit --init gpt2 --seed 0",
        "disc of radius max(1, ρ)",
        "jackknife",
        "covariance_rcond",
    ):
        assert word in text
    for word in (
        "forward passes",
        "second moments",
        "spectra",
        size(data["profile"]["cost"]["peak_memory_bytes"]),
        "transformers",
        "n_embd",
        "random",
    ):
        assert word in text


def test_no_raw_floats():
    page = (
        " ".join(Page(render_html(report())).text) + render_markdown(report())[0]
    )  # labels of a figure stand side by side
    assert not re.findall(r"\d\.\d{9,}", page)


def test_null_is_a_dash_and_refusal_shows_what_the_thresholds_say():
    data = awkward()
    page = visible(render_html(data))
    assert "Not assessable" in page and "The thresholds alone would say: High" in page
    text, _ = render_markdown(data)
    assert "| The thresholds alone |" in text and "| High |" in text
    row = next(row for row in text.splitlines() if row.startswith(f"| {data['profile']['layers'][3]['path']} |"))
    assert row.split("|")[2].strip() == "–"


def test_the_profile_comes_first():
    """A verdict that its own caveats disown is not what a page leads with."""
    data = report()
    data["profile"]["notes"] = ["The tokenizer was trained on this text."]
    for text in (visible(render_html(data)), render_markdown(data)[0]):
        order = ["The tokenizer was trained", "near-unit mass, mean", "Each residual block is fitted", "By depth"]
        order += ["What the published thresholds say", "What the band does not say", "Aggregates over depth"]
        places = [text.index(part) for part in order]
        assert places == sorted(places)
        assert "Divergence risk" not in text
    assert not re.search(r"<title>[^<]*(Low|High|Elevated)", render_html(data))


def test_key_numbers_name_the_layer():
    data = awkward()
    text = visible(render_html(data))
    assert "spectral radius, largest35.2in stack0.layers.2" in text
    data["profile"]["layers"][2]["uninformative"] = True
    assert "spectral radius, largest35.2" not in visible(render_html(data))


@pytest.mark.parametrize(
    ("model", "title"),
    [
        ({"name": "gpt2", "init": "gpt2", "source": "initialised", "model_type": "gpt2", "parameters": 124_439_808},
         "GPT-2 124M, random weights"),
        ({"name": "openai-community/gpt2", "source": "pretrained", "model_type": "gpt2", "parameters": 124_439_808},
         "openai-community/gpt2"),
        ({"name": "x", "init": "x", "source": "initialised", "model_type": "unheard", "parameters": 10}, "x"),
        ({"title": "GPT-2 124M (init)", "name": "gpt2"}, "GPT-2 124M (init)"),
        ({}, "unnamed model"),
    ],
)  # fmt: skip
def test_a_model_is_called_by_its_readable_name(model, title):
    assert title_of(model) == title
    data = report()
    data["profile"]["model"] = model
    assert f"<h1>{title}</h1>" in render_html(data) and render_markdown(data)[0].startswith(f"# {title}:")


def test_tables_of_all_layers_are_folded():
    text, _ = render_markdown(report())
    folded = re.search(r"<details>.*?</details>", text, flags=re.S)[0]
    assert folded.count("\n### ") == 5 and "h.0" in folded
    assert "| h.0 |" not in text.replace(folded, "")


def test_agreeing_band_is_not_repeated():
    assert "thresholds alone" not in visible(render_html(report()))


@pytest.mark.parametrize("path", ["model", "setup", "aggregates", "thirds", "verdict", "cost", "layers", "notes"])
def test_missing_section(path):
    data = report()
    del (data if path == "verdict" else data["profile"])[path]
    Page(render_html(data))
    render_markdown(data)


def test_nothing_but_the_version():
    Page(render_html({"schema_version": 2}))
    render_markdown({"schema_version": 2})


def test_any_missing_null_or_mistyped_key():
    """Every key of the report in turn is left out, null, and of another type; nothing may raise."""
    data = many_layers(2, 4)

    def holders(value):
        if isinstance(value, dict):
            for key in list(value):
                yield value, key
                yield from holders(value[key])
        elif isinstance(value, list):
            for item in value[:2]:
                yield from holders(item)

    places = [(holder, key) for holder, key in holders(data) if key not in ("schema_version", "replicates")]
    assert len(places) > 150
    for holder, key in places:
        kept = dict(holder)
        for change in ("gone", None, "text", [], {}, -3.5, 10**400):
            if change == "gone":
                del holder[key]
            else:
                holder[key] = change
            render_html(data)
            holder.clear()
            holder.update(kept)


def test_other_schema_is_refused():
    with pytest.raises(SchemaError, match="schema_version=7"):
        render_html(report() | {"schema_version": 7})


def test_hostile_names_in_html():
    page = Page(render_html(hostile()))
    assert page.elements.count("script") == 1 and page.elements.count("style") == 1
    assert "img" not in page.elements
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert not [a for a in page.attributes if a[1] in ("href", "src") and not a[2].startswith(("#", "data:image/svg"))]
    text = "".join(page.text)
    assert "<img src=x onerror=alert(1)>" in text  # shown as text
    assert "\u202e" not in text and "\x00" not in text


def test_hostile_names_in_markdown():
    text, figures = render_markdown(hostile())
    for line in text.splitlines():
        if line.startswith(("|", "#", "-")) or "onerror" in line:
            if "rksp audit" in line or line.startswith(("```", "</script>")):
                continue
            assert "<img" not in line and "www.evil" not in line
            assert not re.search(r"(?<!\\)\]\(javascript", line)
    # Every row of a table has as many cells as its head: no pipe and no line break of a name got through.
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({row.count("|") for row in table.splitlines()}) == 1, table[:200]
    for figure in figures.values():
        tree = ElementTree.fromstring(figure)
        names = {element.tag.split("}")[1] for element in tree.iter()}
        assert names <= {"svg", "title", "desc", "style", "rect", "path", "text", "circle", "g", "use"}


def test_command_with_backticks_stays_in_its_fence():
    data = report()
    data["profile"]["setup"]["command"] = "rksp audit 'a```b'\n# not a heading"
    text, _ = render_markdown(data)
    assert "````sh\nrksp audit 'a```b'\n# not a heading\n````" in text
    assert HOSTILE not in text


@pytest.mark.parametrize("make", [report, awkward, lambda: many_layers(100, 64), lambda: many_layers(1, 2)])
def test_figures_are_xml_with_their_own_style(make):
    data = make()
    text, figures = render_markdown(data)
    assert set(re.findall(r"\(figures/(\S+?)\)", text)) == set(figures)
    for figure in figures.values():
        tree = ElementTree.fromstring(figure)
        style = tree.find("{http://www.w3.org/2000/svg}style").text
        assert "prefers-color-scheme:dark" in style and "/*" not in style
        assert not re.search(r"nan|inf\b|None", re.sub(r"<(title|desc|text|style)[^>]*>.*?</\1>", "", figure))
        _, _, width, _ = map(float, tree.get("viewBox").split())
        for element in tree.iter("{http://www.w3.org/2000/svg}circle"):
            assert -10 <= float(element.get("cx")) <= width


def axis(figure, pattern):
    """Coordinate -> value, as the tick labels of a figure say it."""
    ticks = [(float(at), float(label.replace("−", "-"))) for at, label in re.findall(pattern, figure)]
    (a, low), (b, high) = min(ticks, key=lambda tick: tick[1]), max(ticks, key=lambda tick: tick[1])
    return lambda at: low + (at - a) / (b - a) * (high - low)


#: The last label below, at 425, may be of this class too.
Y_TICKS = r'<text x="[\d.]+" y="(?!425")([\d.]+)" class="e">([−\d.]+)</text>'


def test_every_eigenvalue_is_where_the_axes_say():
    data = report()
    figure = render_markdown(data)[1]["eigenvalues.svg"]
    re_of = axis(figure, r'<text x="([\d.]+)" y="425" class="m">([−\d.]+)</text>')
    im_of = axis(figure, Y_TICKS)
    groups = re.findall(
        r'data-l="(\d+)" transform="translate\(([\d.]+) ([\d.]+)\) scale\(([\d.]+) (-[\d.]+)\)">.*? d="(m.*?)"', figure
    )
    assert len(groups) == len(data["profile"]["layers"])
    for place, *numbers, path in groups:
        cx, cy, sx, sy = map(float, numbers)
        x = y = 0
        drawn = []
        for dx, dy in re.findall(r"m(-?\d+) ?(-?\d+)h0", path):
            x, y = x + int(dx), y + int(dy)
            drawn.append(complex(re_of(cx + sx * x), im_of(cy + 4 + sy * y)))  # a label hangs 4 units below its tick
        expected = [complex(*pair) for pair in data["profile"]["layers"][int(place)]["eigenvalues"] if pair[1] >= 0]
        assert all(min(abs(value - dot) for dot in drawn) < 0.02 for value in expected)
        assert all(min(abs(value - dot) for value in expected) < 0.02 for dot in drawn)


@pytest.mark.parametrize("name", ["near_unit_mass", "spectral_radius", "nonlinearity_ratio"])
def test_every_value_is_where_the_axis_says(name):
    data = report()
    figure = render_markdown(data)[1][f"{name}.svg"]
    value_of = axis(figure, Y_TICKS)
    dots = re.findall(r'<circle class="dot" cx="[\d.]+" cy="([\d.]+)"', figure)
    assert [value_of(float(y) + 4) for y in dots] == pytest.approx(
        [layer[name] for layer in data["profile"]["layers"]], abs=0.01
    )
    whiskers = re.findall(r'class="whisker" d="M[\d.]+ ([\d.]+)L[\d.]+ ([\d.]+)"', figure)
    for (low, high), layer in zip(whiskers, data["profile"]["layers"], strict=True):
        assert [value_of(float(y) + 4) for y in (low, high)] == pytest.approx(layer["intervals"][name], abs=0.02)


def test_every_bar_is_as_high_as_its_mass():
    data = report()
    figure = render_markdown(data)[1]["masses.svg"]
    for kind, name in (("exp", "expansive"), ("near", "near_unit"), ("mid", "intermediate"), ("con", "contractive")):
        heights = [
            float(h) / 188
            for h in re.findall(rf'class="{kind}" x="[\d.]+" y="[\d.]+" width="[\d.]+" height="([\d.]{{4,}})"', figure)
        ]
        masses = [layer[f"{name}_mass"] for layer in data["profile"]["layers"] if layer[f"{name}_mass"] > 0]
        assert heights == pytest.approx(masses, abs=0.001)


def test_an_outlier_does_not_squeeze_the_rest():
    data = awkward()
    figure = render_markdown(data)[1]["spectral_radius.svg"]
    radii = [float(y) for y in re.findall(r'<circle class="dot" cx="[\d.]+" cy="([\d.]+)"', figure)]
    assert len(radii) == 7 and max(radii) < 200  # the eighth is marked; the others are off the ground
    assert figure.count('class="past"') == 1 and ">35.2<" in figure
    assert "Above the axis, marked ▲: 1 of 8 layers, largest 35.2" in render_html(data)


def test_identity_blocks_are_hollow_and_explained():
    text, figures = render_markdown(awkward())
    assert figures["spectral_radius.svg"].count('class="mark u"') == 1
    assert text.count("are the identity at this point") >= 4


def test_stacks_have_their_own_planes():
    text, figures = render_markdown(awkward())
    assert {"eigenvalues-1.svg", "eigenvalues-2.svg"} <= set(figures)
    assert figures["spectral_radius.svg"].count('class="stack"') == 2
    assert "eigenvalues.svg" in render_markdown(report())[1]
    assert "stack0.layers" in text
