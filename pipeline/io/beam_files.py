"""Beam's classes for files, imported at their first use: the import takes seconds, and files on a local disk need none.

from . import beam_files
beam_files.FileSystems.exists(path)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apache_beam.io.aws.clients.s3.messages import S3ClientError
    from apache_beam.io.filesystem import BeamIOError, FileSystem
    from apache_beam.io.filesystemio import DownloaderStream
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.utils.retry import FuzzedExponentialIntervals

__all__ = [
    "BeamIOError",
    "DownloaderStream",
    "FileSystem",
    "FileSystems",
    "FuzzedExponentialIntervals",
    "PipelineOptions",
    "S3ClientError",
]

_MODULES = {
    "S3ClientError": "apache_beam.io.aws.clients.s3.messages",
    "BeamIOError": "apache_beam.io.filesystem",
    "FileSystem": "apache_beam.io.filesystem",
    "DownloaderStream": "apache_beam.io.filesystemio",
    "FileSystems": "apache_beam.io.filesystems",
    "PipelineOptions": "apache_beam.options.pipeline_options",
    "FuzzedExponentialIntervals": "apache_beam.utils.retry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


_defaults: list[Any] = []  # what use_default_options has set


def has_options() -> bool:
    """Return whether this program or a runner has given Beam's file systems their options."""
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.value_provider import RuntimeValueProvider

    given = [FileSystems._pipeline_options, RuntimeValueProvider.runtime_options]
    return any(options is not None and not any(options is one for one in _defaults) for options in given)


def use_default_options() -> None:
    """Give Beam's file systems default options if they have none: s3:// cannot be listed without, nor a client kept."""
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    if FileSystems._pipeline_options is None and not has_options():
        _defaults[:] = [PipelineOptions([])]
        FileSystems.set_options(_defaults[0])
