"""Check before a run that its runner exists, has what it needs, and answers."""

from __future__ import annotations

import os
import re
import shutil
import socket
import urllib.request
from urllib.parse import urlsplit

from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
    SparkRunnerOptions,
    StandardOptions,
    TestOptions,
)
from apache_beam.runners import create_runner
from apache_beam.runners.portability.flink_runner import FlinkRunner
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.portability.prism_runner import PrismRunner
from apache_beam.runners.portability.spark_runner import SparkRunner

from ..options import OptionsError, is_local_run
from ..remote.job_service import ServerOption, server_options
from ..terminal import did_you_mean

ENDPOINT_SECONDS = 30  # for a runner's endpoint to answer

_RUNNERS = "DirectRunner, FlinkRunner, SparkRunner, PrismRunner, PortableRunner or DataflowRunner"

FLEX_LAUNCHER = "AUDIOCLIP_BEAM_FLEX_LAUNCHER"  # set by scripts/schedule/flex_launcher.py


def check_runner(options: PipelineOptions) -> None:
    """Check that the runner exists and that its endpoint answers.

    Raises:
        OptionsError: The runner is unknown, or lacks something on this machine.
        RuntimeError: The endpoint did not answer in ENDPOINT_SECONDS.
    """
    name = options.view_as(StandardOptions).runner
    if options.view_as(GoogleCloudOptions).template_location and FLEX_LAUNCHER not in os.environ:
        raise OptionsError(
            "--template_location makes a classic template, and whenever it is started it would write into the same "
            "snapshot: leave it out, or use a Flex Template, as scripts/flex_template.sh does"
        )
    if is_local_run(options):
        if options.view_as(TestOptions).dry_run:
            raise OptionsError(f"--dry_run is for Dataflow: `audioclip plan` is the dry run of {name or 'a local run'}")
        return
    if str(name).lower().rsplit(".", 1)[-1] in ("dask", "daskrunner"):  # Beam takes its full name only
        raise OptionsError(
            f"--runner {name} drops what a step emits in finish_bundle, and with it rows: use {_RUNNERS}"
        )
    try:
        runner = create_runner(name)
    except ImportError as error:
        raise OptionsError(f"--runner {name} is not installed ({error}): install what it needs") from error
    except (ValueError, AttributeError) as error:
        names = [full.removesuffix("Runner") for full in StandardOptions.KNOWN_RUNNER_NAMES]
        raise OptionsError(f"unknown --runner {name}{did_you_mean(str(name), names) or f'; use {_RUNNERS}'}") from error
    if isinstance(runner, PortableRunner):
        _check_job_service(runner, str(name), options)
    elif name and "dataflow" in name.lower():
        cloud = options.view_as(GoogleCloudOptions)
        behind_proxy = "https" in urllib.request.getproxies()
        if not (cloud.template_location or options.view_as(TestOptions).dry_run or behind_proxy):
            _check_connection(cloud.dataflow_endpoint, "--dataflow_endpoint")


def _check_job_service(runner: PortableRunner, name: str, options: PipelineOptions) -> None:
    endpoint = options.view_as(PortableOptions).job_endpoint
    if endpoint and endpoint != "embed":
        job_server_options(options)
    elif isinstance(runner, PrismRunner):
        location = options.view_as(PrismRunnerOptions).prism_location
        if location and not re.match(r"https?://", location) and not os.path.exists(location):
            raise OptionsError(
                f"--prism_location {location} does not exist: give the path of a Prism binary or archive"
            )
    elif isinstance(runner, FlinkRunner):
        flink = options.view_as(FlinkRunnerOptions)
        if flink.flink_master not in ("[local]", "[auto]"):
            _check_connection(flink.flink_master, "--flink_master")
        if not (flink.flink_submit_uber_jar and flink.flink_master not in ("[local]", "[auto]")):
            _check_job_server(flink.flink_job_server_jar, "--flink_job_server_jar", options)
    elif isinstance(runner, SparkRunner):
        spark = options.view_as(SparkRunnerOptions)
        for flag in ("spark_master_url", "spark_rest_url"):
            url = getattr(spark, flag) or ""
            if re.match("(spark|https?)://", url):
                _check_connection(url, f"--{flag}")
        if not spark.spark_submit_uber_jar:
            _check_job_server(spark.spark_job_server_jar, "--spark_job_server_jar", options)
    elif not endpoint:
        raise OptionsError(f"--runner {name} needs --job_endpoint: give the HOST:PORT of its job server")


def job_server_options(options: PipelineOptions) -> list[ServerOption]:
    """Return the options that the job server at --job_endpoint takes, none without an endpoint; RuntimeError as below."""
    portable = options.view_as(PortableOptions)
    if is_local_run(options) or portable.job_endpoint in (None, "embed"):
        return []
    return server_options(portable.job_endpoint, min(ENDPOINT_SECONDS, portable.job_server_timeout))


def _check_connection(url: str, flag: str) -> None:
    """Raise RuntimeError if nothing listens at `url`, which may lack the scheme."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    port = parts.port or {"https": 443, "spark": 7077}.get(parts.scheme, 8081 if "flink" in flag else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=ENDPOINT_SECONDS).close()
    except OSError as error:
        raise RuntimeError(f"nothing answers at {flag} {url}: {error}; start it, or correct the address") from error


def _check_job_server(jar: str | None, flag: str, options: PipelineOptions) -> None:
    """Raise OptionsError if the job server, a Java program that Beam starts on this machine, cannot start."""
    java = options.view_as(JobServerOptions).job_server_java_launcher
    if shutil.which(java) is None:
        raise OptionsError(
            f"the job server needs Java, and {java!r} is not installed: install it, or give the --job_endpoint of a "
            f"running job server"
        )
    if jar and "://" not in jar and not os.path.exists(jar):
        raise OptionsError(f"{flag} {jar} does not exist: give the path or URL of a job server's jar")
