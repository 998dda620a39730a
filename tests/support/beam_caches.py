"""Caches for what Beam computes again in every run: they save a third of the time of the tests' hundreds of small runs.

Beam inspects the signatures of the same methods, and builds and runs the same argument parsers, some hundred times per
run. Both depend on code and flags alone. Only this process is affected: tests of the command line start others.
"""

from __future__ import annotations

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
from apache_beam.transforms import core
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
        self._flags, self._visible_options = flags, copy.deepcopy(parsed[key])
        self._all_options = {**vars(self._visible_options), **overrides}

    return cached


@contextmanager
def beam_caches() -> Iterator[None]:
    """Use the caches within the block."""
    with pytest.MonkeyPatch.context() as patch:
        get_signature = _cached_signatures(decorators.get_signature)
        for module in (decorators, core):
            patch.setattr(module, "get_signature", get_signature)
        patch.setattr(PipelineOptions, "__init__", _cached_options(PipelineOptions.__init__))
        yield
