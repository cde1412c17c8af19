"""What each number is: short definitions, with the equation of the source paper."""

from __future__ import annotations

PAPER = "Kim, Taniguchi, Kawano, Iwasawa, Matsuo: Residual Koopman Spectral Profiling, arXiv:2602.22988"


def definitions(bounds: tuple[float, float, float, float]) -> list[tuple[str, str, str]]:
    """(name, definition, where in the paper), with the bands this report was made with.

    Args:
        bounds: lower and upper end of the near-unit band, end of the contractive one, residual tolerance.
    """
    lower, upper, contractive, tolerance = bounds
    return [
        (
            "Transition",
            "X and Y hold the residual stream before and after one block, the same token in the same column. Columns are "
            "samples of tokens, not a time series.",
            "section 3.2.1",
        ),
        (
            "Operator A",
            "Both sides are centred and whitened with the covariance of X, then Y is fitted by A X with least squares. "
            "Directions whose variance falls below a relative cutoff are dropped first; the paper adds 1e-5 to the diagonal "
            "instead.",
            "Eq. 6–9",
        ),
        (
            "M~1, near-unit mass",
            f"Share of the eigenvalues λ of A with {lower:g} ≤ |λ| ≤ {upper:g}. The published thresholds are for its mean over "
            "layers.",
            "section 3.2.2",
        ),
        (
            "M>1, M<1, M_mid",
            f"Shares with |λ| > {upper:g}, with |λ| < {contractive:g}, and the rest. All four shares add up to 1. The tables give "
            "their denominator, the number of modes counted.",
            "section 3.2.2",
        ),
        (
            "Reliable modes",
            "The ResDMD residual of a mode measures how well its left eigenvector obeys Y = λX on these tokens. Modes with a "
            f"residual of at most {tolerance:g} pass. The filtered masses count only these modes. If no mode passes, the "
            "filtered masses are not defined.",
            "Eq. 10",
        ),
        ("ρ, spectral radius", "Largest |λ|.", "section 3.2.2"),
        (
            "κ(V), eigenvector condition",
            "Condition number of the matrix of unit-length eigenvectors: 1 for a normal operator, not finite for a defective "
            "operator. The condition number has no standard error, because its leave-one-out values spread over powers of ten.",
            "section 3.2.2",
        ),
        (
            "Kreiss constant",
            "How far powers of A can grow before the spectral radius decides, given as a bracket. The lower end is the largest "
            "value found on the resolvent; the upper end is κ(V). For a spectral radius above 1 the constant of Eq. 29 is "
            "infinite, so the bracket is for the disc of radius max(1, ρ).",
            "Eq. 29, 31",
        ),
        (
            "η_nl, nonlinearity ratio",
            "Error of the linear fit divided by the size of the update, both whitened. Not defined if the update vanishes. The "
            "ratio and the residuals are measured on the tokens of the fit, which makes them too low by a factor of about "
            "√(1 − rank / tokens).",
            "Eq. 5",
        ),
        (
            "Henrici departure",
            "√(‖A‖²_F − Σ|λ|²) / ‖A‖_F: 0 for a normal operator, always below 1.",
            "not in the paper",
        ),
        (
            "Relative update",
            "‖Y − X‖_F / ‖X‖_F, whitened. Near 0 the block is the identity, and its spectrum carries no information.",
            "not in the paper",
        ),
        (
            "Standard errors",
            "Jackknife over groups of sequences; intervals are 95%, Student t. The errors cover the choice of text. They do not "
            "cover the random initialisation or the bias from few tokens. The errors of the masses use soft band edges. "
            "The error of a mean over layers takes into account that all layers saw the same text.",
            "not in the paper",
        ),
    ]


#: Published AUROC for telling diverged runs from others, measured at initialisation unless noted.
PUBLISHED = (
    ("near-unit mass", ".995", "[.986, 1.000]"),
    ("near-unit mass × log₁₀ κ(V)", ".873", ""),
    ("spectral radius", ".845", ""),
    ("loss spikes to step 500", ".758", ""),
    ("gradient variance to step 100", ".702", ""),
    ("eigenvector condition", ".687", ""),
    ("gradient norm at step 100", ".685", ""),
    ("initial gradient norm", ".621", ""),
)
