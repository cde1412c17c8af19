"""What the paper reports about architectures (arXiv:2602.22988, Tables 1, 10, 11 and 15 to 18), to put beside ours."""

from __future__ import annotations

from dataclasses import dataclass

THIRDS = ("early", "middle", "late")


@dataclass(frozen=True)
class Published:
    """One figure of the paper.

    Attributes:
        table: of the paper.
        quantity: key of an aggregate of a report.
        value: as printed.
        third: "early", "middle" or "late" third of the depth; ``None``: mean over the layers.
    """

    table: int
    quantity: str
    value: float
    third: str | None = None


@dataclass(frozen=True)
class PublishedModel:
    """The paper's figures for one model, and what is known of how they came about.

    Attributes:
        name: as the paper calls it.
        figures: see `Published`.
        setting: what the paper measured, as far as it says.
        apart: why ours may differ, in words, whatever came out.
        pretrained: its figures are of pretrained weights.
        residual: they are of the whole block x + f(x), as far as we can tell; else ours are shown for f alone as well.
    """

    name: str
    figures: tuple[Published, ...]
    setting: str
    apart: str
    pretrained: bool = False
    residual: bool = True


@dataclass(frozen=True)
class Trend:
    """A quantity that the paper follows from one architecture to the next.

    Attributes:
        said: what changes on the way. models: keys of `PUBLISHED`, in order. quantity: that is followed.
    """

    said: str
    models: tuple[str, ...]
    quantity: str

    @property
    def values(self) -> tuple[float, ...]:
        """The paper's."""
        return tuple(
            next(figure.value for figure in PUBLISHED[key].figures if figure.quantity == self.quantity)
            for key in self.models
        )


def _thirds(table: int, quantity: str, *values: float) -> tuple[Published, ...]:
    return tuple(Published(table, quantity, value, third) for value, third in zip(values, THIRDS, strict=True))


_PRETRAINED = "Pretrained weights; 32 short prompts of at most 64 tokens, rank 32."
_PROMPTS = (
    "The paper's prompt lists repeat 4 or 8 prompts, so most of its columns are duplicates and its regression is "
    "under-determined below N = d; ours are distinct passages. It projects on 32 directions, we use all that the tokens carry. "
    "On random weights of GPT-2 124M the projection alone takes the eigenvector condition from thousands to tens, the near-unit "
    "mass above one half and the nonlinearity ratio to three times what it is; repetitions then halve that ratio (step by step: "
    "scripts/reproduce/paper_setting)."
)
_SMALL = "The paper does not say at which size, on which text or at which point of training."
_OURS = "Size and text are ours. The paper's may be other ones."
_SPLINES = "Size, text and the initialisation of the splines are ours. The paper's may be other ones; its B we read as the order."

PUBLISHED: dict[str, PublishedModel] = {
    "llama-2-7b": PublishedModel(
        "LLaMA-2-7B",
        _thirds(10, "nonlinearity_ratio", 0.45, 0.58, 0.72)
        + _thirds(10, "near_unit_mass", 0.74, 0.68, 0.61)
        + _thirds(10, "eigenvector_condition", 8.2, 9.5, 10.8),
        _PRETRAINED,
        _PROMPTS,
        pretrained=True,
    ),
    "gpt2-124m": PublishedModel(
        "GPT-2 124M",
        _thirds(15, "spectral_radius", 1.15, 1.23, 1.31)
        + _thirds(15, "eigenvector_condition", 8.3, 10.1, 11.2)
        + _thirds(15, "nonlinearity_ratio", 0.52, 0.61, 0.71)
        + _thirds(15, "near_unit_mass", 0.68, 0.62, 0.58),
        _PRETRAINED,
        _PROMPTS,
        pretrained=True,
    ),
    "gpt2-355m": PublishedModel(
        "GPT-2 355M",
        _thirds(15, "spectral_radius", 1.12, 1.19, 1.27)
        + _thirds(15, "eigenvector_condition", 7.5, 9.2, 10.8)
        + _thirds(15, "nonlinearity_ratio", 0.48, 0.58, 0.68)
        + _thirds(15, "near_unit_mass", 0.72, 0.65, 0.60),
        _PRETRAINED,
        _PROMPTS,
        pretrained=True,
    ),
    "pre-ln": PublishedModel(
        "Pre-LN at initialisation",
        (
            Published(1, "near_unit_mass", 0.16),
            Published(1, "expansive_mass", 0.54),
            Published(1, "spectral_radius", 2.29),
        ),
        "Random weights of GPT-2-like models of 4 to 24 blocks, 128 to 1,024 wide, on associative recall; mean of 25.",
        "Ours reads text, in one size.",
    ),
    "moe-k1": PublishedModel(
        "MoE, top-1 of 8",
        (Published(16, "near_unit_mass", 0.72), Published(16, "spectral_radius", 2.85)),
        _SMALL,
        _OURS,
    ),
    "moe-k2": PublishedModel(
        "MoE, top-2 of 8",
        (
            Published(11, "nonlinearity_ratio", 0.55),
            Published(11, "near_unit_mass", 0.58),
            Published(11, "spectral_radius", 2.12),
        ),
        _SMALL,
        _OURS,
    ),
    "moe-k4": PublishedModel(
        "MoE, top-4 of 8",
        (Published(16, "near_unit_mass", 0.45), Published(16, "spectral_radius", 1.78)),
        _SMALL,
        _OURS,
    ),
    "mamba-d256": PublishedModel(
        "Mamba, d = 256",
        (
            Published(11, "nonlinearity_ratio", 0.42),
            Published(17, "near_unit_mass", 0.12),
            Published(17, "contractive_mass", 0.85),
            Published(17, "spectral_radius", 0.95),
        ),
        _SMALL,
        "Ours is the whole residual block, x + f(x). A mass of .85 below .8 and a radius below 1 point to f alone: its linear "
        "map is A - I, its eigenvalues are those of A less 1. The paper does not say which of the two it measured.",
        residual=False,
    ),
    "kan-b4": PublishedModel(
        "KAN, B-splines of order 4",
        (
            Published(18, "nonlinearity_ratio", 0.78),
            Published(18, "reliable_fraction", 0.68),
            Published(11, "near_unit_mass", 0.52),
            Published(11, "spectral_radius", 2.15),
        ),
        _SMALL,
        _SPLINES,
    ),
    "kan-b8": PublishedModel(
        "KAN, B-splines of order 8",
        (Published(18, "nonlinearity_ratio", 0.82), Published(18, "reliable_fraction", 0.52)),
        _SMALL,
        _SPLINES,
    ),
}

_MOE, _KAN = ("moe-k1", "moe-k2", "moe-k4"), ("kan-b4", "kan-b8")
TRENDS = (
    Trend("1, 2, 4 experts of 8 a token", _MOE, "near_unit_mass"),
    Trend("1, 2, 4 experts of 8 a token", _MOE, "spectral_radius"),
    Trend("B-splines of order 4, 8", _KAN, "nonlinearity_ratio"),
    Trend("B-splines of order 4, 8", _KAN, "reliable_fraction"),
)
