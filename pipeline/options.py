"""EmbedOptions: the settings of a job as Beam pipeline options, checked before anything starts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    AzureOptions,
    FlinkRunnerOptions,
    GoogleCloudOptions,
    HadoopFileSystemOptions,
    PipelineOptions,
    PortableOptions,
    S3Options,
    SparkRunnerOptions,
    StandardOptions,
    _BeamArgumentParser,
)

from ..model.head import describe
from ..model.heads import find_head
from ..model.messages import OneLineError
from .flags import MODEL_FLAGS, add_flags, defaults, head_flags, head_of, parsers, store_once, types, underscore_flags
from .io.paths import absolute_path, check_directory, given_path
from .terminal import did_you_mean


class OptionsError(OneLineError, ValueError):
    """Error for an option that is missing, unknown or wrong; the message names it and a remedy."""


_FLAGS = frozenset(f"--{name}" for name in defaults()) | {"--model_path"}


def _without_paths(value: object) -> object:
    """Return an option's value with strings in place of pathlib's paths."""
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _given_paths(name: str, value: object) -> object:
    """Return an option's value with its paths as given_path returns them."""
    if isinstance(value, list):
        return [_given_paths(name, item) for item in value]
    try:
        return given_path(value) if isinstance(value, str) and name in ("input", "output", *MODEL_FLAGS) else value
    except ValueError as error:
        raise OptionsError(f"--{name} {error}") from None


def _check_type(name: str, value: object) -> None:
    """Raise TypeError, which says what to give, if the value of an option has another type than its flag."""
    kind, default = types()[name], defaults()[name]
    is_bool = type(value).__name__ in ("bool", "bool_")  # also numpy's
    if kind is bool:
        fits, expected = is_bool, "True or False"
    elif kind is int:
        fits, expected = isinstance(value, Integral) and not is_bool, "a whole number"
    elif kind is float:
        fits, expected = isinstance(value, Real) and not is_bool, "a number"
    elif kind is list:
        parts = value if isinstance(value, list) else [value]
        fits, expected = all(isinstance(part, str) for part in parts), "a string or a list of strings"
    else:
        fits, expected = isinstance(value, str), "a string"
    if not fits and not (value is None and default is None):
        raise TypeError(f"{name}={describe(value)}: give {expected}")


def _as_flag(name: str, value: object) -> object:
    """Return an option's value as its flag gives it. Raise OptionsError for a value that the flag refuses."""
    is_path = name in ("input", "output", *MODEL_FLAGS)  # which _given_paths checks
    if value is None or isinstance(value, list) or is_path or name not in parsers():
        return value
    try:
        str(value).encode()
        parsed = parsers()[name](str(value))
    except UnicodeEncodeError:  # which `check` reports, if the job graph would contain it
        return value
    except argparse.ArgumentTypeError as error:
        raise OptionsError(f"{name}: {error}") from None
    return parsed if isinstance(value, str) else value


class EmbedOptions(PipelineOptions):  # type: ignore[misc]
    """Options of one embedding job: `EmbedOptions(["--input", "a.txt"])` or `EmbedOptions(input=["a.txt"])`.

    Paths may be strings or pathlib's, and a single input or field need not be a list. Raises TypeError for a value of
    another type than its flag's, and OptionsError for one that the flag refuses.
    """

    # Types for readers and type checkers; PipelineOptions holds the values. Those of one head alone are in `values`.
    input: list[str] | None
    output: str | None
    checkpoint: str
    head: str
    download_model: bool
    id_field: list[str] | str | None
    keep_fields: list[str]
    input_format: str | None
    delimiter: str | None
    quoting: str | None
    escape: str | None
    normalize: bool
    vector_dtype: str
    vector_encoding: str
    dtype: str
    device: str
    accelerator: str | None
    model_threads: int | None
    batch_size: int | None
    max_file_rows: int
    read_timeout: int
    compare: str
    max_rejected: str | None
    max_shrink: float
    force: bool
    retry_rejected: bool
    unique_ids: bool
    allow_damaged: int
    allow_empty: bool
    no_dedupe: bool

    def __init__(self, flags: Sequence[str] | None = None, **options: object) -> None:
        # Without flags Beam would read sys.argv, which in a library call belongs to another program.
        values = {name: _without_paths(value) for name, value in options.items()}
        for name in values.keys() & defaults().keys():
            _check_type(name, values[name])
            if name != "keep_fields":  # a string is one field, which may have commas
                values[name] = _as_flag(name, values[name])
        values = {name: _given_paths(name, value) for name, value in values.items()}
        of_lists = {name for name, kind in types().items() if kind is list}
        values = {
            name: [value] if isinstance(value, str) and name in of_lists else value for name, value in values.items()
        }
        super().__init__(underscore_flags(flags or [], _FLAGS), **values)

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        add_flags(parser)

    @property
    def values(self) -> dict[str, Any]:
        """The values of all flags of `embed`, without Beam's, by name."""
        return {name: getattr(self, name) for name in defaults()}

    @property
    def given(self) -> dict[str, object]:
        """The values of these flags that differ from their defaults."""
        return {name: value for name, value in self.get_all_options(drop_default=True).items() if name in defaults()}

    def check(self) -> tuple[list[str], str]:
        """Return the inputs and the output; raise ValueError if one is missing or is wrong, or if a flag has no effect.

        For a remote run local paths are made absolute: its workers may have another current directory.
        """
        if not self.input:
            raise OptionsError("--input is missing: name the shards, as in --input 'shards/*.jsonl'")
        if not self.output:
            raise OptionsError("--output is missing: name the directory of the snapshots, as in --output out")
        self._check_head()
        self._check_encoding()
        check_directory(self.output)
        if self.no_dedupe and self.batch_size is not None:
            raise OptionsError(
                "--batch_size has no effect with --no_dedupe, by which the model gets rows as they are read: leave one out"
            )
        if self.accelerator and is_local_run(self):
            raise OptionsError("--accelerator is for remote workers: on this machine --device chooses a GPU")
        services = self.view_as(GoogleCloudOptions).dataflow_service_options or []
        if self.accelerator and any("worker_accelerator" in service for service in services):
            raise OptionsError(
                "--accelerator and worker_accelerator cannot be combined: the one requests a GPU for the model's steps, by "
                "right fitting, and the other one for every worker; leave one out"
            )
        if not is_local_run(self):
            self.input, self.output = [absolute_path(path) for path in self.input], absolute_path(self.output)
        return self.input, self.output

    def _check_head(self) -> None:
        """Choose the head, if none is given. Raise OptionsError for a flag that only other heads have."""
        is_given = bool(self.head)
        try:
            self.head = self.head or head_of(self.input or [])
        except ValueError as error:
            raise OptionsError(str(error)) from None
        given = self.given
        for name, (_, heads) in head_flags().items():
            if name in given and self.head not in heads:
                words = " and ".join(heads)
                if is_given:
                    raise OptionsError(f"--{name} is a flag of --head {words}, and --head is {self.head}: leave it out")
                raise OptionsError(
                    f"--{name} is a flag of --head {words}, and --input has {find_head(self.head).items}: give --head, "
                    "or leave it out"
                )

    def _check_encoding(self) -> None:
        """Raise OptionsError for a value that the job graph contains and that is not UTF-8."""
        of_head = [flag.name for flag in find_head(self.head).flags if flag.kind == "word"]
        values = [("input", pattern) for pattern in self.input or []]
        values += [(name, getattr(self, name)) for name in ("output", "checkpoint", *of_head)]
        for name, value in values:
            try:
                str(value).encode()
            except UnicodeEncodeError as error:
                raise OptionsError(
                    f"--{name}: {value!r} is not UTF-8 (character {error.start}): give a value that is"
                ) from None


def beam_parser(*, object_stores_only: bool = False) -> argparse.ArgumentParser:
    """Return a parser of Beam's flags, without those of EmbedOptions; or of its flags for object stores alone."""
    parser = _BeamArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    store_once(parser)
    for options in _STORE_OPTIONS if object_stores_only else PipelineOptions.__subclasses__():
        if options is not EmbedOptions:
            options._add_argparse_args(parser)
    if object_stores_only:
        cloud = _BeamArgumentParser(add_help=False, allow_abbrev=False)
        store_once(cloud)
        GoogleCloudOptions._add_argparse_args(cloud)
        for action in cloud._actions:
            if action.dest in _GCS_OPTIONS:
                parser._add_action(action)
    for action in parser._actions:
        action.help = argparse.SUPPRESS
    return parser  # type: ignore[no-any-return]


# The options of Google Cloud that Beam's client of gs:// reads; the others are Dataflow's.
_GCS_OPTIONS = frozenset(
    {
        "project",
        "no_auth",
        "impersonate_service_account",
        "gcp_oauth_scopes",
        "enable_bucket_read_metric_counter",
        "enable_bucket_write_metric_counter",
        "no_gcsio_throttling_counter",
        "enable_gcsio_blob_generation",
        "gcs_custom_audit_entries",
    }
)

_STORE_OPTIONS = (S3Options, AzureOptions, HadoopFileSystemOptions)


def set_object_store_options(values: Mapping[str, object]) -> None:
    """Set the endpoints and credentials of all object stores to these values of Beam's options."""
    FileSystems.set_options(PipelineOptions([], **values))


def reject_unknown_flags(options: PipelineOptions, others: Collection[str] = ()) -> None:
    """Raise OptionsError for flags that neither this project nor Beam knows, and that are not among `others`."""
    known = {*options.get_all_options(retain_unknown_options=False), *others}
    unknown = [name for name in options.get_all_options(retain_unknown_options=True) if name not in known]
    if unknown:
        flag, *others = [f"--{name}" for name in sorted(unknown)]
        more = f" (also {', '.join(others)})" if others else ""
        raise OptionsError(f"unknown flag {flag}{more}{did_you_mean(flag, [f'--{name}' for name in known])}")


def is_local_run(options: PipelineOptions) -> bool:
    """Return whether the job runs on Beam's runner for one machine."""
    runner = options.view_as(StandardOptions).runner
    return runner is None or runner.lower() in ("direct", "directrunner")  # Beam takes both, in any case


def is_dataflow(options: PipelineOptions) -> bool:
    """Return whether the job runs on Google's Dataflow."""
    return "dataflow" in str(options.view_as(StandardOptions).runner).lower()


def ends_with_launcher(options: PipelineOptions) -> bool:
    """Return whether the job ends with the process that starts it, because that process or its children do the work."""
    if is_local_run(options):
        return True
    runner = str(options.view_as(StandardOptions).runner).lower()
    portable = options.view_as(PortableOptions)
    if is_dataflow(options):
        return False
    if portable.environment_type == "LOOPBACK" or portable.job_endpoint == "embed":
        return True
    if portable.job_endpoint:
        return False
    return (
        "prism" in runner
        or ("flink" in runner and options.view_as(FlinkRunnerOptions).flink_master in ("[local]", "[auto]"))
        or ("spark" in runner and options.view_as(SparkRunnerOptions).spark_master_url.startswith("local"))
    )


def rejected_limit(max_rejected: str | None, read: int) -> float:
    """Return how many of `read` rows a --max_rejected of "100" or "0.5%" allows; infinity for None."""
    if max_rejected is None:
        return float("inf")
    if max_rejected.endswith("%"):
        return read * float(max_rejected[:-1]) / 100
    return float(max_rejected)
