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
