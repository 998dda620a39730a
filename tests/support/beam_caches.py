"""Caches for what every run computes again: they save half of the time of the tests' hundreds of small runs.

Beam inspects the signatures of the same methods, looks for state and timers in the same classes, and builds and runs the
same argument parsers, some hundred times per run. They depend on code and flags alone. Only this process is affected:
tests of the command line start others.
"""

from __future__ import annotations

import argparse
import copy
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Signature
from types import FunctionType, MethodType
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core, userstate
from apache_beam.typehints import decorators


def _cached_signatures(get_signature: Callable[[Any], Signature]) -> Callable[[Any], Signature]:
    """Return `get_signature` with a cache for functions and methods."""

    @functools.lru_cache(4096)
    def of_function(function: FunctionType) -> Signature:
        return get_signature(function)

    @functools.lru_cache(4096)
    def of_method(function: FunctionType) -> Signature:
        return get_signature(MethodType(function, object()))

    def cached(function: Any) -> Signature:
        if isinstance(function, FunctionType):
            return of_function(function)
        if isinstance(function, MethodType) and isinstance(function.__func__, FunctionType):
            return of_method(function.__func__)
        return get_signature(function)

    return cached


def _cached_options(initialize: Callable[..., None]) -> Callable[..., None]:
    """Return `PipelineOptions.__init__` with a cache for what the flags say."""
    parsed: dict[tuple[type, tuple[str, ...]], Any] = {}

    def cached(self: Any, flags: Any = None, **overrides: Any) -> None:
        key = type(self), tuple(sys.argv[1:] if flags is None else flags)
        if isinstance(flags, str) or key not in parsed:
            initialize(self, flags, **overrides)
            parsed[key] = copy.deepcopy(self._visible_options)
            return
        values = {
            name: copy.deepcopy(value) if isinstance(value, list | dict) else value
            for name, value in vars(parsed[key]).items()
        }
        self._flags, self._visible_options = flags, argparse.Namespace(**values)
        self._all_options = {**values, **overrides}

    return cached


def _cached_specs(get_dofn_specs: Callable[[Any], tuple[set[Any], set[Any]]]) -> Callable[[Any], Any]:
    """Return `get_dofn_specs` with a cache by class, for instances without methods of their own."""
    found: dict[type, tuple[set[Any], set[Any]]] = {}

    def cached(dofn: Any) -> tuple[set[Any], set[Any]]:
        if any(isinstance(value, MethodType) for value in vars(dofn).values()):
            return get_dofn_specs(dofn)
        if type(dofn) not in found:
            found[type(dofn)] = get_dofn_specs(dofn)
        states, timers = found[type(dofn)]
        return set(states), set(timers)

    return cached


@contextmanager
def beam_caches() -> Iterator[None]:
    """Use the caches within the block."""
    with pytest.MonkeyPatch.context() as patch:
        get_signature = _cached_signatures(decorators.get_signature)
        for module in (decorators, core):
            patch.setattr(module, "get_signature", get_signature)
        patch.setattr(userstate, "get_dofn_specs", _cached_specs(userstate.get_dofn_specs))
        patch.setattr(PipelineOptions, "__init__", _cached_options(PipelineOptions.__init__))
        yield
