"""What holds of the numerics for any states: scales of 1e-30 to 1e30, any rank, half precision, empty masks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_rksp.config import KSSConfig, SpectralConfig
from hf_rksp.errors import DegenerateMomentsError, InputError, NonFiniteError, TooFewTokensError
from hf_rksp.spectral.alignment import Alignment, alignment_sums, alignments, principal
from hf_rksp.spectral.curvature import largest_eigenvalue, power_iteration
from hf_rksp.spectral.dmd import whitened_dmd
from hf_rksp.spectral.moments import SecondMoments
from hf_rksp.spectral.penalties import shaping_operator, solve_penalties
from hf_rksp.spectral.query_key import effective_rank_of_grams
from hf_rksp.spectral.shaping import leading_directions, project, projected_sums, state_gradients
from hf_rksp.spectral.spectrum import spectrum
from tests.properties.strategies import states

F64 = torch.float64
REFUSED = (TooFewTokensError, DegenerateMomentsError)


def moments_of(s, rows=slice(None), factor=1.0):
    found = SecondMoments(s.x.shape[1])
    mask = None if s.mask is None else s.mask[rows]
    found.update(s.x[rows].double() * factor, s.y[rows].double() * factor, mask)
    return found


def close(one, other, scale, tolerance=1e-9):
    """Equal but for rounding, of numbers of the size of ``scale``."""
    return bool(((one - other).abs() <= tolerance * scale + 1e-300).all())


def same_moments(one, other, scale):
    assert one.count == other.count and one.weight == pytest.approx(other.weight)
    top = max(scale, 1e-300)
    for name in ("mean_x", "mean_y"):
        assert close(getattr(one, name), getattr(other, name), 1e3 * top), name
    for name in ("cxx", "cyx", "cyy"):
        assert close(getattr(one, name), getattr(other, name), 1e6 * top**2 * max(one.count, 1)), name


@given(states(), st.data())
def test_moments_do_not_depend_on_how_the_rows_are_cut(s, data):
    cut = data.draw(st.integers(0, len(s.x)))
    whole = moments_of(s)
    same_moments(moments_of(s, slice(0, cut)).merge(moments_of(s, slice(cut, None))), whole, s.scale)
    if whole.count:
        order = torch.randperm(len(s.x), generator=torch.Generator().manual_seed(0))
        same_moments(moments_of(s, order), whole, s.scale)


@given(states())
def test_rows_that_are_masked_out_are_never_looked_at(s):
    mask = torch.zeros(len(s.x), dtype=torch.bool) if s.mask is None else s.mask
    x, y = s.x.clone(), s.y.clone()
    x[~mask], y[~mask] = math.nan, math.inf
    found, other = SecondMoments(x.shape[1]), SecondMoments(x.shape[1])
    found.update(x, y, mask)
    other.update(s.x, s.y, mask)
    same_moments(found, other, s.scale)
    assert found.count == int(mask.sum())


@given(states(), st.data())
def test_a_part_that_was_added_can_be_taken_out(s, data):
    cut = data.draw(st.integers(0, len(s.x)))
    part, rest = moments_of(s, slice(0, cut)), moments_of(s, slice(cut, None))
    whole = moments_of(s)
    if rest.count:
        same_moments(whole.without(part), rest, s.scale)
    else:
        with pytest.raises(TooFewTokensError):
            whole.without(part)


@given(states(), st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_a_number_that_is_not_finite_adds_nothing(s, bad, data):
    whole, x = moments_of(s), s.x.clone()
    row = data.draw(st.integers(0, len(x) - 1))
    x[row, data.draw(st.integers(0, x.shape[1] - 1))] = bad
    before = moments_of(s)
    if s.mask is None or s.mask[row]:
        with pytest.raises(NonFiniteError):
            before.update(x, s.y, s.mask)
    same_moments(before, whole, s.scale)


@given(states(enough=True))
def test_an_operator_or_a_reason(s):
    """Never NaN: the operator and the spectrum are numbers, or a named error says why there are none."""
    try:
        operator = whitened_dmd(moments_of(s))
    except REFUSED:
        return
    assert operator.matrix.isfinite().all() and 1 <= operator.rank <= s.x.shape[1]
    assert operator.rank <= s.rank + 1 or s.eps > 1e-8, "no direction is made up"
    assert 0 < operator.input_energy <= 1 + 1e-9
    found = spectrum(operator, kreiss=False)
    assert found.eigenvalues.abs().isfinite().all() and not found.residuals.isnan().any()
    shares = found.masses
    assert (
        shares.expansive_mass + shares.near_unit_mass + shares.contractive_mass + shares.intermediate_mass
        == pytest.approx(1)
    )
    assert 0 <= found.reliable_fraction <= 1
    assert found.spectral_radius <= float(torch.linalg.matrix_norm(operator.matrix, 2)) * (1 + 1e-9) + 1e-300
    assert found.eigenvector_condition >= 1 - 1e-9


@given(states(enough=True, dtypes=(F64,)), st.integers(-20, 20))
def test_the_spectrum_does_not_depend_on_the_unit_of_the_states(s, power):
    """To the bit, if the unit is a power of two."""
    factor = 2.0**power
    try:
        one = whitened_dmd(moments_of(s))
    except REFUSED as error:
        with pytest.raises(type(error)):
            whitened_dmd(moments_of(s, factor=factor))
        return
    other = whitened_dmd(moments_of(s, factor=factor))
    assert one.rank == other.rank
    assert torch.equal(one.matrix, other.matrix)


@given(st.integers(1, 6), st.integers(0, 2**31), st.integers(-12, 12))
def test_a_linear_map_has_its_own_eigenvalues(width, seed, power):
    dice = torch.Generator().manual_seed(seed)
    x = torch.randn(20 * width, width, generator=dice, dtype=F64) * 10.0**power
    matrix = torch.randn(width, width, generator=dice, dtype=F64)
    moments = SecondMoments(width)
    moments.update(x, x @ matrix.T + 3)
    found = torch.linalg.eigvals(whitened_dmd(moments, config=SpectralConfig()).matrix).abs().sort().values
    # Eigenvalues of a matrix that is far from normal move by the root of the rounding.
    torch.testing.assert_close(found, torch.linalg.eigvals(matrix).abs().sort().values, rtol=1e-4, atol=1e-4)


@given(states(enough=True, most=15), st.booleans())
def test_directions_are_orthonormal(s, centred):
    rank = min(3, s.x.shape[1])
    weights = None if s.mask is None else s.mask[:, None]
    (basis,) = leading_directions([s.x], rank, torch.Generator().manual_seed(0), centred, weights)
    assert basis.isfinite().all()
    assert close(basis.mT @ basis, torch.eye(rank, dtype=basis.dtype), 1.0, 1e-4)


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
@given(s=states())
def test_penalties_are_numbers_or_are_left_out(schedule, s):
    rank = min(3, s.x.shape[1])
    weights = None if s.mask is None else s.mask[:, None]
    (basis,) = leading_directions([s.x], rank, torch.Generator().manual_seed(0), True, weights)
    p, q = project(s.x, basis, weights), project(s.y, basis, weights)
    sums = projected_sums(p, q, weights)
    solved = solve_penalties(sums[None], KSSConfig(schedule))
    assert math.isfinite(float(solved.penalties[0])) and solved.gradients.isfinite().all()
    if not solved.good[0]:  # KSS leaves the layer out and counts it
        assert not solved.gradients.any()
        return
    assert p.isfinite().all() and q.isfinite().all()
    at_p, at_q = state_gradients(p, q, solved.gradients[0], weights)
    if s.mask is not None:
        assert not at_p[~s.mask].any() and not at_q[~s.mask].any(), "padding has no gradient"


@given(states(enough=True, dtypes=(F64,), masked=False), st.integers(-20, 20))
def test_the_operator_of_kss_does_not_depend_on_the_unit(s, power):
    factor = 2.0**power
    one = shaping_operator(projected_sums(s.x, s.y), KSSConfig())
    other = shaping_operator(projected_sums(s.x * factor, s.y * factor), KSSConfig())
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


@given(states())
def test_alignments_are_cosines(s):
    """Of any states whose numbers are finite and not all zero."""
    dice = torch.Generator().manual_seed(1)
    v = torch.randn(2, s.x.shape[1], generator=dice, dtype=F64)
    v /= v.norm(dim=1, keepdim=True)
    found = alignments(s.x, v.to(torch.promote_types(s.x.dtype, torch.float32)))
    x = s.x.double()
    lengths = x.norm(dim=1)
    true = (x @ v.mT / lengths[:, None]).mT
    there = lengths > 0
    told = found.isfinite().all(0)
    assert found[:, ~there].isnan().all()
    # What float32 cannot square is left out, and nothing else is.
    square_fits = (lengths > 1e-14) & (lengths < 1e18) if s.x.dtype != F64 else there
    assert told[square_fits].all()
    assert close(found[:, told].double(), true[:, told], 1.0, 40 * max(s.eps, 1e-7))
    there = told
    reading = Alignment.of(alignment_sums(found, s.mask)[0])
    counted = int((there if s.mask is None else there & s.mask).sum())
    if not counted:
        assert reading is None
    else:
        assert reading.tokens == counted
        assert 0.5 <= reading.majority_share <= 1 and -1e-12 <= reading.sign_entropy <= 1 + 1e-12
        assert sum(reading.histogram) == pytest.approx(1)


@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(0, 2**31),
    st.integers(-18, 18),
    st.sampled_from([torch.float32, F64]),
)
def test_the_principal_value_is_at_most_the_norm(rows, columns, seed, power, dtype):
    dice = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, columns, generator=dice, dtype=F64) * 10.0**power).to(dtype)
    norm = float(torch.linalg.matrix_norm(weight.double(), 2))
    found = principal(weight, torch.randn(columns, generator=dice).to(dtype), products=3)
    assert 0 <= float(found.sigma) <= norm * (1 + 1e-5)
    assert float(found.v.norm()) == pytest.approx(1, rel=1e-5)
    again = principal(weight, found)
    assert float(again.sigma) >= float(found.sigma) * (1 - 1e-5), "it only rises"
    assert float(found.v @ again.v) >= -1e-5, "the sign stays"


@given(st.integers(1, 10), st.integers(0, 2**31), st.integers(-30, 30), st.sampled_from([torch.float32, F64]))
def test_lanczos_finds_the_largest_eigenvalue(width, seed, power, dtype):
    dice = torch.Generator().manual_seed(seed)
    matrix = torch.randn(width, width, generator=dice, dtype=F64)
    matrix = ((matrix + matrix.mT) * 10.0**power).to(dtype)
    values = torch.linalg.eigvalsh(matrix.double())
    size = float(values.abs().max())
    start = torch.randn(width, generator=dice, dtype=F64).to(dtype)
    found = largest_eigenvalue(lambda v: matrix @ v, start, tolerance=1e-6, max_products=60)
    assert abs(found.value - float(values[-1])) <= 2e-4 * size + 1e-300
    other = power_iteration(lambda v: matrix @ v, start, max_products=5)
    assert abs(other.value) <= size * (1 + 1e-4) + 1e-300


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31), st.integers(-30, 30))
def test_the_effective_rank_is_between_one_and_the_rank(width, rank, seed, power):
    dice = torch.Generator().manual_seed(seed)
    factor = torch.randn(width, min(rank, width), generator=dice, dtype=F64) * 10.0 ** (power / 2)
    found = float(effective_rank_of_grams((factor @ factor.mT)[None])[0])
    assert 1 - 1e-6 <= found <= min(rank, width) * (1 + 1e-2)


def test_a_start_that_is_no_vector_is_refused():
    for start in (torch.zeros(3), torch.tensor([math.nan, 1.0])):
        with pytest.raises(InputError, match="start of norm"):
            largest_eigenvalue(lambda v: v, start)
