"""Processes that start in milliseconds: forks of one server that has imported Beam and the pipeline.

For tests that kill runs or let several run at a time. Tests of the command line start new interpreters, as users do.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import os
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.paths import ROOT

PRELOAD = [
    "tests.support.slow_run",
    "tests.support.media_night",
    "tests.support.object_stores",
    "audioclip_beam.model.text.encoder",
    "audioclip_beam.pipeline.cli.commands",
    "audioclip_beam.pipeline.cli.embed_command",
    "audioclip_beam.pipeline.report.html",
    "audioclip_beam.pipeline.search.exact_search",
    "audioclip_beam.pipeline.validation.validate_snapshot",
    # What these import when they need it.
    "IPython",
    "apache_beam.io.gcp.gcsio",
    "apache_beam.typehints.intrinsic_one_ops",
    "boto3",
    "ftfy",
    "jinja2",
    "logging.config",
    "pyarrow.pandas_compat",
    "safetensors.torch",
    "tests.support.ready",  # the last one
]

# The server's socket is in this directory. It is created at import, because tests set the temporary directory to one that is
# removed, and whose path may be too long for a socket.
multiprocessing.util.get_temp_dir()


def start_process(
    function: Callable[..., object],
    *arguments: object,
    stdout: Path | None = None,
    stderr: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ForkServerProcess:
    """Call `function`, which must be importable, in a new process; its output goes to files, or is dropped.

    `exitcode` is 0 if the function returned, 1 if it raised, and -N if the process was ended by signal N.
    """
    context = multiprocessing.get_context("forkserver")
    _start_server()
    outputs = [os.fspath(path or os.devnull) for path in (stdout, stderr)]
    process = context.Process(
        target=_call, args=(function, arguments, outputs, dict(environment or os.environ)), daemon=True
    )
    process.start()
    return process


def _start_server() -> None:
    """Start the server in the project's directory: it imports from its current directory, and passes over what it misses.

    Its temporary directory is this process's, because that of a test is removed.
    """
    multiprocessing.set_forkserver_preload(PRELOAD)
    directory = os.getcwd()
    os.chdir(ROOT)
    try:
        with mock.patch.dict(os.environ, TMPDIR=multiprocessing.util.get_temp_dir()):
            multiprocessing.forkserver.ensure_running()
    finally:
        os.chdir(directory)


def _call(
    function: Callable[..., object], arguments: tuple[Any, ...], outputs: list[str], environment: dict[str, str]
) -> None:
    """Run in the new process."""
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    os.chdir(ROOT)
    for number, path in enumerate(outputs, 1):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, number)
        os.close(descriptor)
    function(*arguments)


def run_yaml_main(directory: str, flags: list[str]) -> None:
    """Run Beam's YAML main in `directory`, in a new process."""
    from apache_beam.yaml import main

    os.chdir(directory)
    main.run(flags)
