"""Run a Beam pipeline from the command line: choose the runner, show progress, shorten errors."""

from __future__ import annotations

import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, TestOptions, WorkerOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from tqdm import tqdm

from ..embed import EmbedCorpus
from ..metrics import TALLY
from ..options import is_local_run
from ..terminal import print_note

PLAIN_LINE_SECONDS = 30


def run(corpus: EmbedCorpus, options: PipelineOptions) -> bool:
    """Run the job to its end, or hand it to a template's launcher and give False; RuntimeError where it fails."""
    try:
        pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
        try:
            _ = pipeline | "EmbedCorpus" >> corpus
        except BaseException:  # Beam removes its directory for temporary files only at the end of a run
            shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
            raise
        result = pipeline.run()
        # A Flex Template's launcher runs us with --template_location: it starts the job itself, and nobody waits.
        if options.view_as(GoogleCloudOptions).template_location or options.view_as(TestOptions).dry_run:
            return False
        # A method of Dataflow's result; of a job service's it is no public one.
        job = getattr(result, "job_id", None) or getattr(result, "_job_id", None)
        if job:
            print_note(f"Beam's job id: {job() if callable(job) else job}")
        result.wait_until_finish()
    except Exception as error:
        if re.search(r"^KeyboardInterrupt\b", str(error), re.MULTILINE):  # Beam wraps it like any other
            raise KeyboardInterrupt from error
        raise RuntimeError(error_message(error)) from error
    return True


def choose_runner(options: PipelineOptions) -> FnApiRunner | None:
    """Beam's own runner for one machine, so that DirectRunner downloads no other one; None for any other."""
    if not is_local_run(options):
        return None
    worker = options.view_as(WorkerOptions)
    worker.default_sdk_harness_log_level = worker.default_sdk_harness_log_level or "ERROR"
    told = JobServiceHandle.encode_pipeline_options(options.get_all_options())  # to workers in processes of their own
    return FnApiRunner(
        provision_info=ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=told))
    )


def error_message(error: BaseException) -> str:
    """The sentence that one of our errors carries, or else the last error's, out of a runner's traceback."""
    text = str(error)
    if "Channel closed prematurely" in text:  # with --direct_running_mode multi_processing
        return (
            "a worker process ended before its work did (killed, or out of memory?): nothing was published; run again, "
            "with fewer --direct_num_workers if memory was short, and what is finished is reused"
        )
    ours = re.findall(r"^audioclip_text\.[\w.]+(?:Error|Exception): (.+?)(?: \[while running .*)?$", text, re.MULTILINE)
    if not ours and "Traceback (most recent call last)" in text:
        ours = re.findall(r"^((?:\w+\.)*\w+: .+?)(?: \[while running .*)?$", text, re.MULTILINE)
    return ours[-1] if ours else text


@contextmanager
def show_progress(*, known_total: bool) -> Iterator[None]:
    """Show rows, rows/s, rejected and, once all rows are read, the time left: a bar on a terminal, else plain lines."""
    TALLY.clear()
    done, terminal = threading.Event(), sys.stderr.isatty()
    bar = tqdm(total=None, unit=" rows", unit_scale=True, disable=not terminal, dynamic_ncols=True, leave=False)
    started = time.monotonic()

    def watch() -> None:
        while not done.wait(0.5 if terminal else PLAIN_LINE_SECONDS):
            read, rejected = TALLY["rows_read"], TALLY["rows_rejected"]
            embedded = max(TALLY["rows_embedded"], TALLY["texts_modelled"])  # the canary's texts are in the second
            rows = min(read, embedded + TALLY["rows_reused"] + rejected)
            if not terminal:
                rate = rows / (time.monotonic() - started)
                print_note(f"read {read:,}, done {rows:,} ({rate:,.0f}/s), rejected {rejected:,}")
                continue
            if known_total and rows > rejected:  # what is shuffled has been read to its end
                bar.total = read
            bar.set_postfix_str(f"{rejected:,} rejected", refresh=False)
            bar.update(rows - bar.n)
            bar.refresh()

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        bar.close()
