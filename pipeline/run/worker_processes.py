"""Worker processes of this machine: what they import, and what becomes of a run when one of them ends.

Beam starts them with the current folder first on their path, and waits for ever for one that ends before it is connected.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import grpc  # type: ignore[import-untyped]
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, WorkerOptions
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.portability.python_urns import EMBEDDED_PYTHON_LOOPBACK
from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcServer, GrpcWorkerHandler, WorkerHandler
from apache_beam.runners.portability.local_job_service import BeamFnLoggingServicer
from apache_beam.runners.portability.portable_runner import PipelineResult, PortableRunner
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.transforms.environments import ExternalEnvironment
from apache_beam.utils import thread_pool_executor
from google.protobuf import json_format

from ..remote.decoder_watch import BEGINNING

WORKER_PROCESS = "audioclip_beam:env:worker_process:v1"  # the environment whose workers LocalWorker starts

STDERR_SECONDS = 3  # for the rest of what a worker that has ended wrote

END_SECONDS = 30  # for a worker to end when its work is done

_CONNECTED = b"audioclip-beam: connected\n"  # what a worker writes to stderr

_PROGRAM = """
import sys
sys.path[:] = {path!r}
from apache_beam.runners.worker import sdk_worker, sdk_worker_main
class Harness(sdk_worker.SdkHarness):
    def run(self):
        print({connected!r}, end="", file=sys.stderr, flush=True)
        super().run()
sdk_worker_main.SdkHarness = Harness
{start}
"""

LOCAL_START = "sdk_worker_main.main(sys.argv)"


def worker_path() -> list[str]:
    """Return the path on which workers find what this process has found: no other module can hide one of these.

    The standard library is first. Folders from which this process has imported nothing, and the current one, are last.
    """
    library = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    library += [os.path.join(library[1], "lib-dynload")]
    used, current = _folders_of_modules(), os.path.realpath(os.curdir)
    others = {path or current: os.path.realpath(path) for path in sys.path if path not in library}
    return library + sorted(others, key=lambda path: (others[path] == current, others[path] not in used))


def _folders_of_modules() -> set[str]:
    """Return the folders from which this process has imported modules."""
    found: set[str] = set()
    for name, module in list(sys.modules.items()):
        if "." in name or name in ("__main__", "sitecustomize", "usercustomize"):
            continue
        with suppress(Exception):  # whatever a module has in the place of these
            inside = list(getattr(module, "__path__", ())) or [module.__file__]
            found |= {os.path.realpath(os.path.dirname(path)) for path in inside}
    return found


def describe_end(status: int, last_line: str, connected: bool, decoded: str = "") -> str:
    """Return the error of a run whose worker ended.

    Args:
        status: Its exit status, -N for signal N.
        last_line: The last line of its stderr, if it was not connected.
        connected: Whether it was.
        decoded: What its decoders' watch has printed.
    """
    if status < 0:
        name = signal.Signals(-status).name if -status in list(signal.Signals) else f"signal {-status}"
        cause = f"ended by {name}" + (", as when memory is short" if name == "SIGKILL" else "")
    else:
        cause = f"exit status {status}" + (f", {last_line}" if last_line else "")
    if decoded:
        return f"a worker process ended while it decoded {decoded} ({cause})"
    if connected:
        return (
            f"a worker process ended before its work did ({cause}): run again, which reuses what is finished, with fewer "
            f"--direct_num_workers if memory was short"
        )
    if status < 0:
        remedy = "run again, with fewer --direct_num_workers if memory was short"
    else:
        remedy = (
            f"`{sys.executable} -P -c 'import apache_beam, audioclip_beam.pipeline'` must work; "
            f"--direct_running_mode in_memory needs no worker processes"
        )
    return f"a worker process ended before it was connected ({cause}): {remedy}"


class WorkerProcess:
    """A Python process that runs Beam's worker, watched until it ends.

    It leaves Ctrl-C and the end of the terminal to this process, and does not read PYTHONPATH, whose folders are on the path
    of this process. Of what it writes to stderr before it is connected, only the last line is used: it says why it ended.

    Args:
        start: The line of Python that starts Beam's worker, as LOCAL_START.
        environment: Variables to add to the environment.
        on_end: Called, in a thread, with an error message if the process ends while `may_end` is false.
    """

    def __init__(
        self, start: str, environment: Mapping[str, str], on_end: Callable[[WorkerProcess, str], None]
    ) -> None:
        program = _PROGRAM.format(path=worker_path(), connected=_CONNECTED.decode(), start=start)
        command = ["/bin/sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh", str(sys.executable), "-P", "-c", program]
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.connected = self.may_end = False
        self._last_line = self._decoded = ""
        self._on_end = on_end
        self.process = subprocess.Popen(command, env={**variables, **environment}, stderr=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, name="worker-stderr", daemon=True)
        self._reader.start()
        threading.Thread(target=self._watch, name="worker-watch", daemon=True).start()

    def kill(self) -> None:
        """End the process now."""
        self.may_end = True
        self.process.kill()
        self.process.wait()

    def wait(self) -> None:
        """Wait until the process has ended; kill it if it is not connected, or takes too long."""
        self.may_end = True
        try:
            self.process.wait(END_SECONDS if self.connected else 0)
        except subprocess.TimeoutExpired:
            self.kill()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line == _CONNECTED:
                self.connected = True
            elif line.startswith(BEGINNING.encode()):
                self._decoded = line.decode("utf-8", "replace").strip().removeprefix(BEGINNING)
            elif self.connected:
                with suppress(OSError):
                    os.write(2, line)
            elif line.strip():
                self._last_line = line[:300].decode("utf-8", "replace").strip()

    def _watch(self) -> None:
        status = self.process.wait()
        may_end = self.may_end  # Beam, too, sees the end, and closes the worker while the rest of its stderr is read
        self._reader.join(STDERR_SECONDS)  # a child of the worker may keep stderr open
        if not may_end:
            self._on_end(self, describe_end(status, self._last_line, self.connected, self._decoded))


# Why workers of this process's run have ended: Beam may see the end first, and fail the run with an error of its own.
_ENDS = queue.SimpleQueue[str]()


def forget_ends() -> None:
    """Forget the workers of an earlier run."""
    with suppress(queue.Empty):
        while True:
            _ENDS.get_nowait()


def why_worker_ended() -> str | None:
    """Return the error of a worker that has ended, once, if there is one or comes within some seconds."""
    with suppress(queue.Empty):
        return _ENDS.get(timeout=2 * STDERR_SECONDS)
    return None


_WORKERS: WeakKeyDictionary[GrpcServer, list[LocalWorker]] = WeakKeyDictionary()  # of each run, by its server


@WorkerHandler.register_environment(WORKER_PROCESS, bytes)
class LocalWorker(GrpcWorkerHandler):  # type: ignore[misc]
    """A worker of a local run. If its process ends, the run fails: all its requests are answered with the error."""

    def __init__(self, payload: bytes, state: Any, provision_info: Any, grpc_server: GrpcServer) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._workers = _WORKERS.setdefault(grpc_server, [])
        self._workers.append(self)
        self._process: WorkerProcess | None = None
        self._error = ""
        self._pending = WeakSet[Any]()
        self._lock = threading.Lock()
        self._push, self.control_conn.push = self.control_conn.push, self._push_or_fail

    def start_worker(self) -> None:
        """Start the process, with a service for its log as Beam's own workers have it."""
        self._logging = grpc.server(thread_pool_executor.shared_unbounded_instance())
        port = self._logging.add_insecure_port("[::]:0")
        beam_fn_api_pb2_grpc.add_BeamFnLoggingServicer_to_server(BeamFnLoggingServicer(), self._logging)
        self._logging.start()
        environment = {
            "CONTROL_API_SERVICE_DESCRIPTOR": f'url: "{self.control_address}"',
            "LOGGING_API_SERVICE_DESCRIPTOR": f'url: "localhost:{port}"',
            "PIPELINE_OPTIONS": json_format.MessageToJson(self.provision_info.provision_info.pipeline_options),
            "WORKER_ID": self.worker_id,
        }
        with self._lock:
            if not self._error:  # of a worker that was started before
                self._process = WorkerProcess(LOCAL_START, environment, self._fail_run)

    def close(self) -> None:
        """End the worker, which has no work left."""
        if self._process:
            self._process.may_end = True
        super().close()

    def stop_worker(self) -> None:
        """Wait for the process; Beam's channels to it are closed."""
        if self._process:
            self._process.wait()
        self._logging.stop(0)
        self._workers.remove(self)  # which refers to the key of the list

    def _fail_run(self, _: WorkerProcess, error: str) -> None:
        """Fail all requests to all workers of the run, and end their processes: a batch of another one may take minutes."""
        _ENDS.put(error)
        for worker in list(self._workers):
            worker._fail(error)

    def _fail(self, error: str) -> None:
        with self._lock:
            self._error = self._error or error
            pending = list(self._pending)
        for future in pending:
            self._answer(future)
        if self._process:
            self._process.kill()

    def _push_or_fail(self, request: Any) -> Any:
        """Send a request to the worker and return the future of its answer; None for the marker of the end."""
        future = self._push(request)
        if future is not None:
            with self._lock:
                self._pending.add(future)
            if self._error:
                self._answer(future)
        return future

    def _answer(self, future: Any) -> None:
        future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=future.instruction_id, error=self._error))


class WorkerPool(BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]
    """The pool of processes that a launcher starts with --environment_type LOOPBACK.

    A worker that ends before it is connected would be waited for: `on_failure` gets the error. The runner notices the end
    of one that is connected, and may start another one.
    """

    def __init__(self, on_failure: Callable[[str], object], **settings: Any) -> None:
        super().__init__(**settings)
        self._on_failure = on_failure
        self._watched: dict[str, WorkerProcess] = {}

    @classmethod
    def start_with(cls, on_failure: Callable[[str], object], cache_bytes: int) -> tuple[str, Any]:
        """Serve a pool; return its address and the server."""
        started: tuple[str, Any] = super().start.__func__(
            partial(cls, on_failure), use_process=True, state_cache_size=cache_bytes, data_buffer_time_limit_ms=0
        )
        return started

    def StartWorker(self, request: Any, context: Any) -> Any:
        """Start a worker for the control service that the request names."""
        start = (
            f"Harness({request.control_endpoint.url!r}, worker_id={request.worker_id!r}, "
            f"state_cache_size={self._state_cache_size}, data_buffer_time_limit_ms={self._data_buffer_time_limit_ms}).run()"
        )
        try:
            worker = self._watched[request.worker_id] = WorkerProcess(start, {}, self._report)
        except OSError as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=str(error))
        self._worker_processes[request.worker_id] = worker.process  # ended at the exit of this process
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:
        """End a worker."""
        if request.worker_id in self._watched:
            self._watched.pop(request.worker_id).may_end = True
        return super().StopWorker(request, context)

    def _report(self, process: WorkerProcess, error: str) -> None:
        if not process.connected:
            self._on_failure(error)


def watch_pool(runner: PortableRunner) -> None:
    """Have `runner` start a WorkerPool where Beam starts a pool of processes, and fail a job whose workers cannot start."""
    submit, start_environments = runner.run_portable_pipeline, runner.start_and_replace_loopback_environments
    errors: list[str] = []
    results: list[PipelineResult] = []

    def fail(error: str) -> None:
        errors.append(error)
        for result in results:
            with suppress(Exception):  # the job has ended, or its service has
                result.cancel()

    def start_pools(pipeline: Any, options: PipelineOptions) -> Any:
        clean_up = []
        if options.view_as(DebugOptions).lookup_experiment("use_loopback_process_worker", False):
            cache = options.view_as(WorkerOptions).max_cache_memory_usage_mb << 20
            for environment in pipeline.components.environments.values():
                if environment.urn == EMBEDDED_PYTHON_LOOPBACK:
                    address, server = WorkerPool.start_with(fail, cache)
                    external = ExternalEnvironment(address).to_runner_api(None)
                    environment.urn, environment.payload = external.urn, external.payload
                    clean_up.append(partial(server.stop, 1))
        return [*clean_up, *start_environments(pipeline, options)]

    def submit_and_watch(pipeline: Any, options: PipelineOptions) -> PipelineResult:
        result = submit(pipeline, options)
        wait = result.wait_until_finish

        def wait_or_fail(*arguments: Any) -> Any:
            try:
                return wait(*arguments)
            finally:
                if errors:
                    raise RuntimeError(errors[0])

        result.wait_until_finish = wait_or_fail
        results.append(result)
        if errors:
            fail(errors[0])
        return result

    runner.start_and_replace_loopback_environments, runner.run_portable_pipeline = start_pools, submit_and_watch
