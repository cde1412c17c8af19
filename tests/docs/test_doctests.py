"""Every public function of the numerics shows a closed form, and what it shows is true."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import hf_rksp.spectral

MODULES = [f"hf_rksp.spectral.{module.name}" for module in pkgutil.iter_modules(hf_rksp.spectral.__path__)]


def without_example(module):
    """Public functions of a module whose docstring has no example."""
    functions = [f for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
    return [f.__name__ for f in functions if not f.__name__.startswith("_") and ">>>" not in (f.__doc__ or "")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_has_an_example(name):
    assert without_example(importlib.import_module(name)) == []


def test_a_function_without_example_is_found():
    module = importlib.import_module("hf_rksp.spectral.dmd")

    def choose_rank():
        """No example."""

    choose_rank.__module__ = module.__name__
    shown, module.choose_rank = module.choose_rank, choose_rank
    try:
        assert without_example(module) == ["choose_rank"]
    finally:
        module.choose_rank = shown
