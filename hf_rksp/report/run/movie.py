"""The eigenvalues of every profile in the complex plane: two stills for every reader, and all frames for the script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hf_rksp.history.read import History, layers_at
from hf_rksp.report.kit import plane
from hf_rksp.report.kit.plane import Cloud, Window
from hf_rksp.report.kit.svg import Figure, median
from hf_rksp.report.kit.text import count, line, number, share
from hf_rksp.report.run.numbers import largest, layer_names, mean, profile_steps, top

#: Points in one page, mirrored pairs counted once; four bytes each.
BUDGET = 200_000
#: Two of these spell one coordinate of a point, as a number of 12 bits.
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
#: Added to a coordinate so that it is positive; the fine grid of a plane reaches from -768 to 768.
SHIFT = 2048
#: In the order in which the page names them.
_MASSES = ("near_unit_mass", "expansive_mass", "intermediate_mass", "contractive_mass")
Bounds = tuple[float, float, float]


class Movie:
    """All frames of all runs in one window, so that nothing moves but the eigenvalues.

    Args:
        histories: the runs.
        bounds: lower and upper end of the near-unit band, end of the contractive one.
    """

    def __init__(self, histories: Sequence[History], bounds: Bounds) -> None:
        self.histories, self.bounds = histories, bounds
        self.names, self.steps = layer_names(histories), profile_steps(histories)
        self.places = {name: place for place, name in enumerate(self.names)}
        spectra = [
            [
                {name: plane._spectrum(layer) for name, layer in layers_at(profile).items()}
                for profile in history.spectra
            ]
            for history in histories
        ]
        frames = [frame for run in spectra for frame in run]
        self.window = _window([[v for values in frame.values() for v in values] for frame in frames], bounds[1])
        self.each = max(plane._KEEP, BUDGET // max(1, sum(map(len, frames))))
        self.clouds = [
            [{name: plane._cloud(values, self.window, self.each) for name, values in frame.items()} for frame in run]
            for run in spectra
        ]
        #: Modes of each layer that lie outside of the window.
        self.outside = [
            [{name: sum(self.window.over(v) > 1 for v in values) for name, values in frame.items()} for frame in run]
            for run in spectra
        ]

    def stills(self) -> list[list[Figure]]:
        """For each run its first and its last profile, drawn in full."""
        return [
            [self._still(run, at) for at in dict.fromkeys((0, len(history.spectra) - 1))]
            for run, history in enumerate(self.histories)
            if history.spectra
        ]

    def stage(self, place: int) -> Figure:
        """The empty plane of a run, for the script to draw into."""
        clouds = f'<g class="clouds" transform="{self._transform()}"></g>'
        return self._figure(f"movie-{place}", "", "Eigenvalues at the step of the slider.", clouds)

    def encoded(self) -> str:
        """Every frame as JSON that may stand in a page: positions on the fine grid, numbers as text."""
        data = {
            "steps": self.steps,
            "layers": [line(name, 120) for name in self.names],
            "shades": [f"r{self._shade(place)}" for place in range(len(self.names))],
            "runs": [
                {
                    "name": line(history.name, 60),
                    "frames": [self._frame(run, at) for at in range(len(history.spectra))],
                }
                for run, history in enumerate(self.histories)
            ],
        }
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

    def caption(self) -> str:
        """What to know when reading the planes."""
        text = (
            "Each dot is one mode of one block, coloured by depth. Squares on the frame stand for modes that lie outside of "
            "it."
        )
        if any(cloud.drawn < cloud.total for run in self.clouds for frame in run for cloud in frame.values()):
            text += (
                f" Thinned to {self.each} spots a layer and profile, evenly by modulus, the {plane._KEEP} outermost always; "
                "the history files have all."
            )
        return text

    def _frame(self, run: int, at: int) -> dict[str, Any]:
        profile, clouds, outside = self.histories[run].spectra[at], self.clouds[run][at], self.outside[run][at]
        layers = []
        for name, layer in layers_at(profile).items():
            cloud = clouds[name]
            texts = [number(layer.get("spectral_radius")), *(share(layer.get(key)) for key in _MASSES)]
            drawn = [self.places[name], int(cloud.mirrored), encode(cloud)]
            layers.append([*drawn, cloud.total, outside[name], *texts])
        total = sum(cloud.total for cloud in clouds.values())
        texts = [number(top(profile, "spectral_radius")), *(share(mean(profile, key)) for key in _MASSES)]
        return {"step": profile["step"], "all": [total, sum(outside.values()), *texts], "layers": layers}

    def _still(self, run: int, at: int) -> Figure:
        profile, drawn = self.histories[run].spectra[at], ""
        key = f"still-{run}-{at}"
        for name, layer in layers_at(profile).items():
            depth = self.places[name] / max(1, len(self.names) - 1)
            drawn += plane._layer(self.places[name], layer, self.clouds[run][at][name], key, depth)
        told = f"Mean near-unit mass {share(mean(profile, 'near_unit_mass'))}, largest spectral radius "
        radius = largest(profile, "spectral_radius")
        told += f"{number(radius.value)} in {line(radius.where, 60)}." if radius else "not known."
        if beyond := sum(self.outside[run][at].values()):
            told += f" {count(beyond)} {'mode lies' if beyond == 1 else 'modes lie'} outside the frame."
        title = f"Step {profile['step']:,}"
        title = f"{line(self.histories[run].name, 60)}, {title.lower()}" if len(self.histories) > 1 else title
        return self._figure(key, title, told, drawn)

    def _figure(self, key: str, title: str, told: str, drawn: str) -> Figure:
        body = plane._ground(self.window, self.bounds) + drawn + plane._circles(self.window, self.bounds)
        body += plane._legend([{"path": name} for name in self.names], self.bounds)
        return Figure(key, title or "Eigenvalues", told, told, plane._WIDTH, plane._HEIGHT, body)

    def _shade(self, place: int) -> int:
        return round(place / max(1, len(self.names) - 1) * (plane.STEPS - 1))

    def _transform(self) -> str:
        middle = f"{plane._LEFT + plane._SIDE / 2:g} {plane._TOP + plane._SIDE / 2:g}"
        return f"translate({middle}) scale({1 / plane._FINE:g} {-1 / plane._FINE:g})"


def encode(cloud: Cloud) -> str:
    """Four characters a point. A point on the frame needs no flag: it is the one that lies outside."""
    numbers = (number + SHIFT for point in (*cloud.inside, *cloud.outside) for number in point)
    return "".join(DIGITS[number >> 6] + DIGITS[number & 63] for number in numbers)


def _window(frames: Sequence[list[complex]], upper: float) -> Window:
    """The plane's own choice over what most frames hold: one frame that blows up must not shrink all others to a dot."""
    outermost = [sorted(map(abs, values))[int(0.99 * (len(values) - 1))] for values in frames if values]
    reach = 1.5 * max(median(outermost), upper) if outermost else upper
    return plane._window([value for values in frames for value in values if abs(value) <= reach], upper)
