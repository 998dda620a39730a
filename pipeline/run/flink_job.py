"""A remote job at Flink, which Beam's job server does not cancel: it only stops waiting."""

from __future__ import annotations

import json
import re
import urllib.request
from contextlib import suppress
from dataclasses import dataclass

from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions

from .check_runner import job_server_options

_SECONDS = 10
_ENDED = ("FINISHED", "FAILED", "CANCELED")


@dataclass(frozen=True)
class FlinkJob:
    """A job by its name at Flink, and the URL of Flink's REST interface, None if only the job server knows it."""

    name: str
    url: str | None

    @classmethod
    def of(cls, options: PipelineOptions, job: str) -> FlinkJob | None:
        """Return the Flink job of Beam's job id; None if the runner is not Flink, or if its Flink ends with this process."""
        master = options.view_as(FlinkRunnerOptions).flink_master.strip()
        name = job.rpartition("_")[0]  # Beam adds an underscore and random characters
        if master not in ("[auto]", "[local]"):
            return cls(name, master if re.match(r"https?://", master) else f"http://{master}")
        with suppress(RuntimeError):
            if any(option.name == "flink_master" for option in job_server_options(options)):
                return cls(name, None)
        return None

    def cancel(self) -> bool:
        """Cancel the job at Flink; return False if its address is not known, or if Flink did not do so."""
        if self.url is None:
            return False
        with suppress(OSError, ValueError, KeyError):
            with urllib.request.urlopen(f"{self.url}/jobs/overview", timeout=_SECONDS) as answer:
                jobs = json.load(answer)["jobs"]
            ids = [job["jid"] for job in jobs if job["name"] == self.name and job["state"] not in _ENDED]
            if len(ids) == 1:  # a name that a user has given may be that of several jobs
                url = f"{self.url}/jobs/{ids[0]}?mode=cancel"
                urllib.request.urlopen(urllib.request.Request(url, method="PATCH"), timeout=_SECONDS).close()
                return True
        return False

    @property
    def how_to_cancel(self) -> str:
        """What a user must do to cancel the job."""
        url = self.url or "http://FLINK:8081"
        return (
            f"to cancel it at Flink: `curl -X PATCH '{url}/jobs/ID?mode=cancel'`, with the ID that `curl "
            f"{url}/jobs/overview` shows for {self.name}"
        )
