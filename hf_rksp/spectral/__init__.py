"""Moments, whitened DMD and spectra. Needs torch alone; takes moments and matrices, never models."""

from hf_rksp.spectral.curvature import LargestEigenvalue, largest_eigenvalue, power_iteration
from hf_rksp.spectral.dmd import WhitenedOperator, choose_rank, whitened_dmd
from hf_rksp.spectral.jackknife import jackknife, leave_one_out, standard_error
from hf_rksp.spectral.kreiss import KreissBracket, kreiss_constant
from hf_rksp.spectral.modal import ModalBasis, modal_basis
from hf_rksp.spectral.moments import SecondMoments, merge_all
from hf_rksp.spectral.rounding import rounding_deviation
from hf_rksp.spectral.spectrum import (
    Masses,
    Spectrum,
    eigenvalue_masses,
    smoothed_masses,
    spectral_masses,
    spectrum,
    spectrum_for_errors,
)

__all__ = [
    "KreissBracket",
    "LargestEigenvalue",
    "Masses",
    "ModalBasis",
    "SecondMoments",
    "Spectrum",
    "WhitenedOperator",
    "choose_rank",
    "eigenvalue_masses",
    "jackknife",
    "kreiss_constant",
    "largest_eigenvalue",
    "leave_one_out",
    "merge_all",
    "modal_basis",
    "power_iteration",
    "rounding_deviation",
    "smoothed_masses",
    "spectral_masses",
    "spectrum",
    "spectrum_for_errors",
    "standard_error",
    "whitened_dmd",
]
