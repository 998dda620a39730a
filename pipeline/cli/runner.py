"""Run a Beam pipeline from the command line: choose the runner, run, and shorten errors."""

from __future__ import annotations

import os
import re
import shutil
from glob import escape
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    TestOptions,
    WorkerOptions,
)
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.portability.python_urns import SUBPROCESS_SDK
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.portable_runner import JobServiceHandle

from ..embed import EmbedCorpus
from ..io.filesystem import is_local
from ..options import is_local_run
from ..snapshots.commit import current_name
from ..snapshots.run_directory import run_path
from ..terminal import print_note
from .signals import end_on_signal, remove_matches


def run(corpus: EmbedCorpus, options: PipelineOptions) -> bool:
    """Run the job to its end and return True; or hand it to the launcher of a template and return False.

    Raises:
        RuntimeError: The run failed; the text is the first line that explains it.
    """
    state = _RunState(corpus, options)
    try:
        with end_on_signal(state.message, state.clean_up):
            pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
            state.temporary = pipeline.local_tempdir
            try:
                _ = pipeline | "EmbedCorpus" >> corpus
            except BaseException:  # Beam removes its directory for temporary files only at the end of a run
                shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
                raise
            result = pipeline.run()
            # The launcher of a Flex Template runs this with --template_location: it starts the job itself, without waiting.
            if options.view_as(GoogleCloudOptions).template_location or options.view_as(TestOptions).dry_run:
                return False
            # A method of Dataflow's result; of a job service's result it is a private attribute.
            job = getattr(result, "job_id", None) or getattr(result, "_job_id", None)
            if job:
                state.job = str(job() if callable(job) else job)
                print_note(f"Beam's job id: {state.job}")
            result.wait_until_finish()
    except Exception as error:
        if re.search(r"^KeyboardInterrupt\b", str(error), re.MULTILINE):  # Beam wraps it like any other
            raise KeyboardInterrupt from error
        raise RuntimeError(error_message(error)) from error
    return True


def choose_runner(options: PipelineOptions) -> FnApiRunner | None:
    """Return Beam's own runner for a local run, so that DirectRunner downloads no other one; else None."""
    if not is_local_run(options):
        return None
    worker = options.view_as(WorkerOptions)
    worker.default_sdk_harness_log_level = worker.default_sdk_harness_log_level or "ERROR"
    for_workers = JobServiceHandle.encode_pipeline_options(options.get_all_options())  # for workers in other processes
    return _LocalRunner(
        provision_info=ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=for_workers))
    )


class _LocalRunner(FnApiRunner):  # type: ignore[misc]
    """FnApiRunner whose worker processes leave Ctrl-C and the end of the terminal to this process, which ends them."""

    def run_via_runner_api(self, pipeline_proto: Any, options: PipelineOptions) -> Any:
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == SUBPROCESS_SDK:
                environment.payload = b"trap '' INT HUP; exec " + environment.payload
        return super().run_via_runner_api(pipeline_proto, options)


def error_message(error: BaseException) -> str:
    """Return the message of one of this project's errors, or else of the last error, in a runner's traceback."""
    text = str(error)
    if "Channel closed prematurely" in text:  # with --direct_running_mode multi_processing
        return (
            "a worker process ended before its work did (killed, or out of memory?): run again, "
            "which reuses what is finished, with fewer --direct_num_workers if memory was short"
        )
    ours = re.findall(r"^audioclip_text\.[\w.]+(?:Error|Exception): (.+?)(?: \[while running .*)?$", text, re.MULTILINE)
    if not ours and "Traceback (most recent call last)" in text:
        ours = re.findall(r"^((?:\w+\.)*\w+: .+?)(?: \[while running .*)?$", text, re.MULTILINE)
    return ours[-1] if ours else text


class _RunState:
    """What a signal needs to know of the run that it ends."""

    def __init__(self, corpus: EmbedCorpus, options: PipelineOptions) -> None:
        self.corpus, self.local = corpus, is_local_run(options)
        self.runner = options.view_as(StandardOptions).runner
        self.temporary: str | None = None
        self.job: str | None = None

    def message(self, signal_name: str) -> str:
        """Return the line to print when a signal ends this process."""
        snapshot, output = self.corpus.snapshot, self.corpus.job.output
        if self.job and not self.local:
            return (
                f"interrupted by {signal_name}: job {self.job} goes on at {self.runner}; `audioclip-text log {output}` "
                f"lists {snapshot} when it is published"
            )
        if snapshot and self.local and current_name(output) == snapshot:
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
            temporary = f"*{os.getpid()}.tmp"
            patterns = [
                os.path.join(escape(output), temporary),
                os.path.join(escape(output), "snapshots", f".*-{os.getpid()}"),
            ]
            if snapshot and self.local:
                directory = escape(run_path(output, snapshot))
                patterns += [os.path.join(directory, "*.tmp"), os.path.join(directory, ".*.tmp")]
            remove_matches(patterns)
        self.corpus.close()
