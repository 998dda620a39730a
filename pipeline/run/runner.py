"""Run a Beam pipeline from the command line: choose the runner, run, and shorten errors."""

from __future__ import annotations

import os
import re
import shutil
from glob import escape
from typing import Any

import apache_beam as beam
import grpc  # type: ignore[import-untyped]
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    TestOptions,
    WorkerOptions,
)
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.portability.python_urns import SUBPROCESS_SDK
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner
from apache_beam.runners.runner import PipelineResult, PipelineRunner, create_runner

from ..embed import EmbedCorpus
from ..io.filesystem import temporary_names
from ..io.paths import is_local
from ..layout import SNAPSHOTS
from ..options import is_local_run
from ..remote.job_service import ANSWER_SECONDS, ENDED, RemoteJob, within
from ..snapshots.commit import current_name
from ..snapshots.run_directory import run_path
from ..terminal import print_note
from .flink_job import FlinkJob
from .signals import end_on_signal, remove_matches
from .watch_job import JobWatch
from .worker_processes import WORKER_PROCESS, forget_ends, watch_pool, why_worker_ended


def run(corpus: EmbedCorpus, options: PipelineOptions) -> bool:
    """Run the job to its end and return True; or hand it to the launcher of a template and return False.

    Raises:
        RuntimeError: The job failed; the message is the first line that explains it.
        Exception: An error of this process, as a SnapshotError, keeps its class.
    """
    state = _RunState(corpus, options)
    try:
        with end_on_signal(state.message, state.clean_up) as set_handlers:
            pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
            state.temporary = pipeline.local_tempdir
            try:
                _ = pipeline | "EmbedCorpus" >> corpus
            except BaseException:  # Beam removes its directory for temporary files only at the end of a run
                shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
                raise
            result = pipeline.run()
            set_handlers()
            if options.view_as(TestOptions).dry_run:
                corpus.may_go_on = False
                return False
            # The launcher of a Flex Template runs this with --template_location: it starts the job itself, without waiting.
            if options.view_as(GoogleCloudOptions).template_location:
                return False
            job = remote_job(result, options)
            if job:
                state.job = job.job
                corpus.record_job(job)
                state.flink = FlinkJob.of(options, job.job)  # it may wait for the job server
                print_note(f"Beam's job id: {state.job}")
            watch = JobWatch(corpus, result, options, state.flink)
            try:
                with watch:
                    result.wait_until_finish()
            except Exception as error:  # of the job, or of the connection to its service
                corpus.may_go_on = corpus.may_go_on and not _has_ended(result)
                if watch.error:
                    raise RuntimeError(watch.error) from error
                if isinstance(error, grpc.RpcError):
                    still_running = (
                        f": job {state.job} may still be running at {state.runner}" if corpus.may_go_on else ""
                    )
                    message = f"the job service does not answer any more ({error.details()}){still_running}"
                    raise RuntimeError(message) from error
                _check_ends(watch, error)
                raise
            corpus.may_go_on = False
            if watch.error:
                raise RuntimeError(watch.error)
    except Exception as error:
        if re.search(r"^KeyboardInterrupt\b", str(error), re.MULTILINE):  # Beam wraps it like any other
            raise KeyboardInterrupt from error
        message = error_message(error)
        if message == str(error):  # an error of this process, whose class says what it is
            raise
        raise RuntimeError(message) from error
    return True


def _check_ends(watch: JobWatch, error: Exception) -> None:
    """Raise RuntimeError for a remote job that failed with `error`, if workers have reported why they ended."""
    if reason := watch.worker_end():
        raise RuntimeError(f"{reason} ({error_message(error)})") from error


def remote_job(result: PipelineResult, options: PipelineOptions) -> RemoteJob | None:
    """Return the job of a remote runner's result; None if it has no id."""
    # A method of Dataflow's result; of a job service's result it is a private attribute.
    job = getattr(result, "job_id", None) or getattr(result, "_job_id", None)
    if not job:
        return None
    job_id = str(job() if callable(job) else job)
    runner, cloud = str(options.view_as(StandardOptions).runner), options.view_as(GoogleCloudOptions)
    if "dataflow" in runner.lower():
        return RemoteJob(job_id, runner, cloud.dataflow_endpoint, cloud.project, cloud.region)
    return RemoteJob(job_id, runner, options.view_as(PortableOptions).job_endpoint)


def _has_ended(result: PipelineResult) -> bool:
    """Return whether the job has ended; False if its service does not answer in a few seconds."""
    try:
        return within(ANSWER_SECONDS, lambda: str(result.state)) in ENDED
    except Exception:
        return False


def choose_runner(options: PipelineOptions) -> PipelineRunner:
    """Return the runner of the options; for a local run Beam's own, so that DirectRunner downloads no other one."""
    if not is_local_run(options):
        runner = create_runner(options.view_as(StandardOptions).runner)
        if isinstance(runner, PortableRunner):
            _remove_time_limit(runner)
            watch_pool(runner)
        return runner
    worker = options.view_as(WorkerOptions)
    worker.default_sdk_harness_log_level = worker.default_sdk_harness_log_level or "ERROR"
    for_workers = JobServiceHandle.encode_pipeline_options(options.get_all_options())  # for workers in other processes
    return _LocalRunner(
        provision_info=ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=for_workers))
    )


def _remove_time_limit(runner: PortableRunner) -> None:
    """Have `runner` wait for a job as long as it takes: Beam ends the stream of its states after --job_server_timeout."""
    create = runner.create_job_service_handle

    def create_handle(service: Any, options: PipelineOptions) -> JobServiceHandle:
        handle = create(service, options)
        submit = handle.run

        def run(preparation_id: str) -> Any:
            handle.timeout = None  # until here it is that of requests
            return submit(preparation_id)

        handle.run = run
        return handle

    runner.create_job_service_handle = create_handle


class _LocalRunner(FnApiRunner):  # type: ignore[misc]
    """FnApiRunner with worker processes that are watched (`worker_processes`)."""

    def run_via_runner_api(self, pipeline_proto: Any, options: PipelineOptions) -> Any:
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == SUBPROCESS_SDK:
                environment.urn = WORKER_PROCESS
        forget_ends()
        return super().run_via_runner_api(pipeline_proto, options)


def error_message(error: BaseException) -> str:
    """Return the message of one of this project's errors, or else of the last error, in a runner's traceback."""
    message = str(error.details() if isinstance(error, grpc.RpcError) else error)
    if "Channel closed prematurely" in message:  # with --direct_running_mode multi_processing
        return why_worker_ended() or (
            "a worker process ended before its work did (killed, or out of memory?): run again, "
            "which reuses what is finished, with fewer --direct_num_workers if memory was short"
        )
    message = re.sub(r" \[while running .*$", "", message, flags=re.MULTILINE)  # a step, which Beam adds to each error
    ours = re.findall(r"^audioclip_beam\.[\w.]+(?:Error|Exception): (.+)$", message, re.MULTILINE)
    if not ours and "Traceback (most recent call last)" in message:
        ours = re.findall(r"^((?:\w+\.)*\w+: .+)$", message, re.MULTILINE)
        ours = [re.sub(r"^\w+: \[Errno \d+\] ", "", each) for each in ours]  # the words say what it is
    return ours[-1] if ours else message


class _RunState:
    """What a signal needs to know of the run that it ends."""

    def __init__(self, corpus: EmbedCorpus, options: PipelineOptions) -> None:
        self.corpus = corpus
        self.runner = options.view_as(StandardOptions).runner
        self.temporary: str | None = None
        self.job: str | None = None
        self.flink: FlinkJob | None = None

    def message(self, signal_name: str) -> str:
        """Return the line to print when a signal ends this process."""
        snapshot, output = self.corpus.snapshot, self.corpus.job.output
        if self.corpus.may_go_on:
            job = f"job {self.job} is still running at" if self.job else "the job may have been submitted to"
            return (
                f"interrupted by {signal_name}: {job} {self.runner}; `audioclip log {output}` lists {snapshot} when "
                f"it is published{f'; {self.flink.how_to_cancel}' if self.flink else ''}"
            )
        if snapshot and current_name(output) == snapshot:
            return f"interrupted by {signal_name}: {snapshot} was published"
        return (
            f"interrupted by {signal_name}: nothing was published; run the same command again, which reuses what is "
            f"finished"
        )

    def clean_up(self) -> None:
        """Remove the temporary files of this run."""
        if self.temporary:
            shutil.rmtree(self.temporary, ignore_errors=True)
        output, snapshot = self.corpus.job.output, self.corpus.snapshot
        if is_local(output):
            patterns = temporary_names(output) + temporary_names(os.path.join(output, SNAPSHOTS))
            if snapshot and not self.corpus.may_go_on:
                directory = escape(run_path(output, snapshot))
                patterns += [os.path.join(directory, "*.tmp"), os.path.join(directory, ".*.tmp")]
            remove_matches(patterns)
        self.corpus.close()
