"""The states of remote jobs, asked of the services that run them: Beam's job servers, and Dataflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar
from urllib.parse import quote, urlsplit

from ..io.worker_thread import WorkerThread

ANSWER_SECONDS = 5.0  # for all services together: they are asked at the same time

# Names of states, which Beam's job servers, Dataflow and Beam's results share. A job that was UPDATED goes on as another.
ENDED = frozenset({"DONE", "FAILED", "CANCELLED", "DRAINED"})

_T = TypeVar("_T")


@dataclass(frozen=True)
class ServerOption:
    """A pipeline option that a job server takes: its name, "word", "number", "switch" or "list", and its default."""

    name: str
    kind: str
    default: str = ""


def server_options(endpoint: str, seconds: float) -> list[ServerOption]:
    """Return the options that the job server at `endpoint` describes.

    Raises:
        RuntimeError: It does not answer in that time.
    """
    import grpc  # type: ignore[import-untyped]
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    kinds = beam_job_api_pb2.PipelineOptionType
    words = {kinds.INTEGER: "number", kinds.BOOLEAN: "switch", kinds.ARRAY: "list"}
    with grpc.insecure_channel(endpoint) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        try:
            answer = service.DescribePipelineOptions(
                beam_job_api_pb2.DescribePipelineOptionsRequest(), timeout=seconds, wait_for_ready=True
            )
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                return []  # it answers, but describes none
            raise RuntimeError(
                f"no job server answers at --job_endpoint {endpoint} ({seconds:g} s): start it, or correct the endpoint"
            ) from error
    return [
        ServerOption(option.name, words.get(option.type, "word"), option.default_value) for option in answer.options
    ]


@dataclass(frozen=True)
class RemoteJob:
    """A job and where to ask for its state: HOST:PORT of a job server, or the URL of Dataflow with project and region.

    `endpoint` is None if the process that started the job also started its job server: no one can ask it later.
    """

    job: str
    runner: str
    endpoint: str | None = None
    project: str | None = None
    region: str | None = None


States: TypeAlias = dict[RemoteJob, str]


def job_states(jobs: Collection[RemoteJob]) -> States:
    """Return the states, as in "RUNNING", of those jobs whose services know them and answer within ANSWER_SECONDS."""
    states: States = {}
    deadline = time.monotonic() + ANSWER_SECONDS
    calls: list[Future[None]] = []
    for endpoint in {job.endpoint for job in jobs if job.endpoint}:
        served = [job for job in jobs if job.endpoint == endpoint]
        ask = _ask_dataflow if served[0].project else _ask_job_server
        calls.append(_start(partial(ask, endpoint, served, states, deadline)))
    for call in calls:
        with suppress(Exception):  # whatever fails, the state is unknown
            call.result(timeout=max(0.0, deadline - time.monotonic()))
    return dict(states)


def within(seconds: float, call: Callable[[], _T]) -> _T:
    """Return what `call` returns; raise TimeoutError if it takes longer."""
    return _start(call).result(timeout=seconds)


def _start(call: Callable[[], _T]) -> Future[_T]:
    """Make a call in a thread that does not keep the process alive, whatever blocks in it."""
    thread = WorkerThread("job-service")
    future = thread.submit(call)
    thread.end()
    return future


def _ask_job_server(endpoint: str, jobs: Collection[RemoteJob], states: States, deadline: float) -> None:
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    with grpc.insecure_channel(endpoint) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        for job in jobs:
            request = beam_job_api_pb2.GetJobStateRequest(job_id=job.job)
            try:
                answer = service.GetState(request, timeout=max(0.0, deadline - time.monotonic()))
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return
                continue  # it does not know the job: it was restarted
            states[job] = beam_job_api_pb2.JobState.Enum.Name(answer.state)


def _ask_dataflow(endpoint: str, jobs: Collection[RemoteJob], states: States, deadline: float) -> None:
    """Use Dataflow's REST interface, with the credentials that Beam uses for gs:// and Dataflow."""
    import requests
    from apache_beam.internal.gcp.auth import get_service_credentials
    from apache_beam.options.pipeline_options import PipelineOptions

    session, url = requests.Session(), urlsplit(endpoint)
    # The endpoint is read from a file: no other host gets a token.
    if url.scheme == "https" and (url.hostname or "").endswith(".googleapis.com"):
        credentials = get_service_credentials(PipelineOptions([]))
        if credentials:
            from google.auth.transport.requests import AuthorizedSession

            session = AuthorizedSession(credentials.get_google_auth_credentials())
    with session:
        for job in jobs:
            names = [quote(str(name), safe="") for name in (job.project, job.region, job.job)]
            path = "v1b3/projects/{}/locations/{}/jobs/{}".format(*names)
            seconds = max(0.1, deadline - time.monotonic())
            answer = session.get(f"{endpoint.rstrip('/')}/{path}", timeout=seconds, allow_redirects=False)
            if answer.status_code == 200:
                states[job] = str(answer.json().get("currentState", "")).removeprefix("JOB_STATE_")
