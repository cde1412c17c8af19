"""The eigenvalues of every reading in the complex plane: two stills for every reader, and all frames for the script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_rksp.history.read import layers_at
from hf_rksp.quantities import LAYER, MASSES
from hf_rksp.report.kit import plane
from hf_rksp.report.kit.plane import Cloud, Window
from hf_rksp.report.kit.svg import Figure, median
from hf_rksp.report.kit.text import count, line, number, share
from hf_rksp.report.run.layered import layered_of, names_in, steps_in
from hf_rksp.report.run.numbers import Run, largest, mean, top

#: Points in one page, mirrored pairs counted once; four bytes each.
BUDGET = 200_000
#: Two of these spell one coordinate of a point, as a number of 12 bits.
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
#: Added to a coordinate so that it is positive.
SHIFT = 2048
#: The masses in the order in which the page names them.
_MASSES = ("near_unit_mass", *(name for name in MASSES if name != "near_unit_mass"))
Bounds = tuple[float, float, float]


class Movie:
    """All frames of all runs in one window, so that nothing moves but the eigenvalues.

    Args:
        runs: the runs; their readings that have eigenvalues are drawn.
        bounds: lower and upper end of the near-unit band, end of the contractive one.
    """

    def __init__(self, runs: Sequence[Run], bounds: Bounds) -> None:
        self.runs, self.bounds = runs, bounds
        self.readings = [run.history.spectra for run in runs]
        layered = [layered_of(rows) for rows in self.readings]
        self.names, self.steps = names_in(layered), steps_in(layered)
        self.places = {name: place for place, name in enumerate(self.names)}
        spectra = [
            [{name: plane.eigenvalues_of(layer) for name, layer in layers_at(row).items()} for row in rows]
            for rows in self.readings
        ]
        frames = [frame for run in spectra for frame in run]
        self.window = _window([[v for values in frame.values() for v in values] for frame in frames], bounds[1])
        self.each = max(plane.KEEP, BUDGET // max(1, sum(map(len, frames))))
        self.clouds = [
            [{name: plane.cloud_of(values, self.window, self.each) for name, values in frame.items()} for frame in run]
            for run in spectra
        ]
        #: Modes of each layer that lie outside of the window.
        self.outside = [
            [{name: sum(self.window.over(v) > 1 for v in values) for name, values in frame.items()} for frame in run]
            for run in spectra
        ]

    def stills(self) -> list[list[Figure]]:
        """For each run its first and its last reading, drawn in full."""
        return [
            [self._still(run, at) for at in dict.fromkeys((0, len(rows) - 1))]
            for run, rows in enumerate(self.readings)
            if rows
        ]

    def stage(self, place: int) -> Figure:
        """The empty plane of a run, for the script to draw into."""
        clouds = f'<g class="clouds" transform="{plane.transform()}"></g>'
        return self._figure(f"movie-{place}", "", "Eigenvalues at the step of the slider.", clouds)

    def data(self) -> dict[str, Any]:
        """Every frame for the script: positions on the fine grid, numbers as text, and all constants that both sides need."""
        return {
            "code": {"digits": DIGITS, "shift": SHIFT},
            "plane": plane.constants(),
            "steps": self.steps,
            "layers": [line(name, 120) for name in self.names],
            "shades": [f"r{plane.shade(place, len(self.names))}" for place in range(len(self.names))],
            "labels": _labels(),
            "runs": [
                {"name": run.name, "frames": [self._frame(place, at) for at in range(len(self.readings[place]))]}
                for place, run in enumerate(self.runs)
            ],
        }

    def caption(self) -> str:
        """What to know when reading the planes."""
        text = "Each dot is one mode of one block, coloured by depth. Squares on the frame stand for modes outside it."
        if any(cloud.drawn < cloud.total for run in self.clouds for frame in run for cloud in frame.values()):
            text += (
                f" Thinned to {self.each} dots per layer and reading, evenly by modulus, and always the {plane.KEEP} "
                "outermost; the history files have all eigenvalues."
            )
        return text

    def _frame(self, run: int, at: int) -> dict[str, Any]:
        reading, clouds, outside = self.readings[run][at], self.clouds[run][at], self.outside[run][at]
        layers = []
        for name, layer in layers_at(reading).items():
            cloud = clouds[name]
            texts = _texts(number(layer.get("spectral_radius")), [share(layer.get(key)) for key in _MASSES])
            drawn = [self.places[name], int(cloud.mirrored), encode(cloud)]
            layers.append([*drawn, cloud.total, outside[name], *texts])
        total = sum(cloud.total for cloud in clouds.values())
        texts = _texts(number(top(reading, "spectral_radius")), [share(mean(reading, key)) for key in _MASSES])
        return {"step": reading["step"], "all": [total, sum(outside.values()), *texts], "layers": layers}

    def _still(self, run: int, at: int) -> Figure:
        reading, drawn = self.readings[run][at], ""
        key = f"still-{run}-{at}"
        for name, layer in layers_at(reading).items():
            depth = self.places[name] / max(1, len(self.names) - 1)
            drawn += plane.layer_drawn(self.places[name], layer, self.clouds[run][at][name], key, depth)
        text = f"Mean near-unit mass {share(mean(reading, 'near_unit_mass'))}, largest spectral radius "
        radius = largest(reading, "spectral_radius")
        text += f"{number(radius.value)} in {line(radius.where, 60)}." if radius else "not known."
        if beyond := sum(self.outside[run][at].values()):
            text += f" {count(beyond)} {'mode lies' if beyond == 1 else 'modes lie'} outside the frame."
        title = f"Step {reading['step']:,}"
        title = f"{self.runs[run].name}, {title.lower()}" if len(self.runs) > 1 else title
        return self._figure(key, title, text, drawn)

    def _figure(self, key: str, title: str, text: str, drawn: str) -> Figure:
        body = plane.ground(self.window, self.bounds) + drawn + plane.circles(self.window, self.bounds)
        body += plane.legend([{"path": name} for name in self.names], self.bounds)
        return Figure(key, title or "Eigenvalues", text, text, plane.WIDTH, plane.HEIGHT, body)


def _texts(radius: str, masses: list[str]) -> list[str]:
    return [masses[0], radius, *masses[1:]]


def _labels() -> dict[str, list[str]]:
    """What the list beside a plane calls the texts of a frame, of one layer and of all."""
    masses = [LAYER[key].title for key in _MASSES]
    radius = LAYER["spectral_radius"].title
    counts = ["modes", "of them outside the frame"]
    return {
        "one": counts + _texts(radius, masses),
        "all": counts + _texts(f"{radius}, largest", [f"{name}, mean" for name in masses]),
    }


def encode(cloud: Cloud) -> str:
    """Four characters a point. A point on the frame needs no flag: it is the one that lies outside."""
    numbers = (number + SHIFT for point in (*cloud.inside, *cloud.outside) for number in point)
    return "".join(DIGITS[number >> 6] + DIGITS[number & 63] for number in numbers)


def _window(frames: Sequence[list[complex]], upper: float) -> Window:
    """The plane's own choice over what most frames hold: one frame that blows up must not shrink all others to a dot."""
    outermost = [sorted(map(abs, values))[int(0.99 * (len(values) - 1))] for values in frames if values]
    reach = 1.5 * max(median(outermost), upper) if outermost else upper
    return plane.window_of([value for values in frames for value in values if abs(value) <= reach], upper)
