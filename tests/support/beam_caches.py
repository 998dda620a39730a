"""Caches for what every run computes again: they save two thirds of the time of the tests' hundreds of small runs.

Beam inspects signatures and source of the same methods, looks for state and timers in the same classes, and builds and runs
the same argument parsers, some hundred times per run; the versions of packages are parsed from the same files. All that
depends on code and flags alone. New interpreters, as those of `tests.support.program`, have Beam as it is.
"""

from __future__ import annotations

import argparse
import copy
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution
from types import FunctionType, MethodType
from typing import Any

import pytest
from apache_beam.options import pipeline_options
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.options.value_provider import ValueProvider
from apache_beam.transforms import core, userstate
from apache_beam.typehints import decorators

from audioclip_beam.model.heads import HEADS


def _by_function(inspect: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return `inspect` with a cache for functions and methods."""
    of_function = functools.lru_cache(4096)(inspect)

    @functools.lru_cache(4096)
    def of_method(function: FunctionType) -> Any:
        return inspect(MethodType(function, object()))

    def cached(function: Any) -> Any:
        if isinstance(function, FunctionType):
            return of_function(function)
        if isinstance(function, MethodType) and isinstance(function.__func__, FunctionType):
            return of_method(function.__func__)
        return inspect(function)

    return cached


def _cached_arguments(get_arguments: Callable[[Any], tuple[list[str], list[Any]]]) -> Callable[[Any], Any]:
    """Return `get_function_args_defaults` with a cache; each call has lists of its own."""
    find = _by_function(get_arguments)

    def cached(function: Any) -> tuple[list[str], list[Any]]:
        names, defaults = find(function)
        return [*names], [*defaults]

    return cached


def _copies(values: dict[str, Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(value) if isinstance(value, list | dict) else value for name, value in values.items()}


def _cached_options(initialize: Callable[..., None]) -> Callable[..., None]:
    """Return `PipelineOptions.__init__` with a cache for what the flags say."""
    parsed: dict[tuple[object, ...], Any] = {}

    def cached(self: Any, flags: Any = None, **overrides: Any) -> None:
        key = type(self), *HEADS, tuple(sys.argv[1:] if flags is None else flags)
        if isinstance(flags, str) or key not in parsed:
            initialize(self, flags, **overrides)
            parsed[key] = copy.deepcopy(self._visible_options)
            return
        values = _copies(vars(parsed[key]))
        self._flags, self._visible_options = flags, argparse.Namespace(**values)
        self._all_options = {**values, **overrides}

    return cached


def _cached_values(get_all_options: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return `PipelineOptions.get_all_options` with one parser for all calls without options that it does not know."""
    parsers: dict[object, tuple[argparse.ArgumentParser, dict[str, Any]]] = {}

    def cached(self: Any, drop_default: bool = False, **settings: Any) -> dict[str, Any]:
        classes = PipelineOptions.__subclasses__()
        key = *classes, *HEADS  # whose flags are among those of EmbedOptions
        if key not in parsers:
            parser = pipeline_options._BeamArgumentParser(allow_abbrev=False)
            for each in {str(each): each for each in reversed(classes)}.values():
                each._add_argparse_args(parser)
            defaults = {action.dest: parser.get_default(action.dest) for action in parser._actions}
            parsers[key] = (
                parser,
                {name: default for name, default in defaults.items() if not isinstance(default, ValueProvider)},
            )
        parser, defaults = parsers[key]
        known, unknown = parser.parse_known_args(self._flags)
        values = vars(known)
        if (
            unknown
            or self._all_options.keys() - values.keys()
            or settings.keys() & {"add_extra_args_fn", "current_only"}
        ):
            return get_all_options(self, drop_default, **settings)
        values |= self._all_options
        if drop_default:
            return {name: value for name, value in values.items() if name not in defaults or defaults[name] != value}
        return values

    return cached


def _cached_names(list_names: Callable[[Any], list[str]]) -> Callable[[Any], list[str]]:
    """Return `PipelineOptions._visible_option_list` with a cache by class and heads."""
    found: dict[tuple[object, ...], list[str]] = {}

    def cached(self: Any) -> list[str]:
        key = type(self), *HEADS
        if key not in found:
            found[key] = list_names(self)
        return found[key]

    return cached


def _cached_specs(get_dofn_specs: Callable[[Any], tuple[set[Any], set[Any]]]) -> Callable[[Any], Any]:
    """Return `get_dofn_specs` with a cache by class and by the methods of the instance alone."""
    found: dict[Any, tuple[set[Any], set[Any]]] = {}

    def cached(dofn: Any) -> tuple[set[Any], set[Any]]:
        methods = {name: value.__func__ for name, value in vars(dofn).items() if isinstance(value, MethodType)}
        key = type(dofn), *methods.items()
        if key not in found:
            found[key] = get_dofn_specs(dofn)
        states, timers = found[key]
        return set(states), set(timers)

    return cached


def _cached_version(version: Callable[[Any], str]) -> Callable[[Any], str]:
    """Return the getter of `Distribution.version` with a cache by the distribution's path."""
    found: dict[str, str] = {}

    def cached(self: Any) -> str:
        path = str(getattr(self, "_path", ""))
        if not path:
            return version(self)
        return found.setdefault(path, found.get(path) or version(self))

    return cached


@contextmanager
def beam_caches() -> Iterator[None]:
    """Use the caches within the block."""
    with pytest.MonkeyPatch.context() as patch:
        get_signature = _by_function(decorators.get_signature)
        for module in (decorators, core):
            patch.setattr(module, "get_signature", get_signature)
        patch.setattr(decorators.IOTypeHints, "from_callable", _by_function(decorators.IOTypeHints.from_callable))
        patch.setattr(decorators.IOTypeHints, "_make_origin", lambda *_, **__: [])  # stacks, for messages about types
        patch.setattr(core, "get_function_args_defaults", _cached_arguments(core.get_function_args_defaults))
        patch.setattr(core, "_check_fn_use_yield_and_return", _by_function(core._check_fn_use_yield_and_return))
        patch.setattr(userstate, "get_dofn_specs", _cached_specs(userstate.get_dofn_specs))
        patch.setattr(PipelineOptions, "__init__", _cached_options(PipelineOptions.__init__))
        patch.setattr(PipelineOptions, "_visible_option_list", _cached_names(PipelineOptions._visible_option_list))
        patch.setattr(PipelineOptions, "get_all_options", _cached_values(PipelineOptions.get_all_options))
        patch.setattr(Distribution, "version", property(_cached_version(Distribution.version.fget)))
        yield
