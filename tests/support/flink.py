"""A standalone Flink cluster: a job manager, task managers with a worker pool each, and Beam's job server."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.support.engines import (
    JAVA,
    Cluster,
    Processes,
    flink_jars,
    job_server,
    page_command,
    wait_until,
)
from tests.support.pages import blocks, read_page
from tests.support.tools import free_port

# What Flink's own start scripts would compute from the machine, and addresses.
_MEMORY = {
    "jobmanager.memory.process.size": "1024m",
    "taskmanager.cpu.cores": "2",
    "taskmanager.memory.task.heap.size": "512m",
    "taskmanager.memory.task.off-heap.size": "0m",
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.managed.size": "256m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "192m",
    "taskmanager.memory.jvm-overhead.max": "192m",
}
_LOGGING = """rootLogger.level=INFO
rootLogger.appenderRef.c.ref=C
appender.c.name=C
appender.c.type=CONSOLE
appender.c.layout.type=PatternLayout
appender.c.layout.pattern=%d{HH:mm:ss,SSS} %-5p %c{1} %m%n
"""


class Flink(Cluster):
    """A cluster with the settings of docs/runners.md; `address` is where task managers find the job manager."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.processes, self.address, self._started = Processes(folder), address, 0
        self.rest, self.rpc, self.blob, self.pool, self.jobs_port = (free_port() for _ in range(5))
        (folder / "conf").mkdir()
        (settings,) = blocks(read_page("docs/runners.md"), "yaml")
        (folder / "conf" / "flink-conf.yaml").write_text(settings)
        (folder / "conf" / "log4j.properties").write_text(_LOGGING)
        self._java = *JAVA, f"-Dlog4j.configurationFile=file:{folder}/conf/log4j.properties", "-cp"
        self._options = {
            "jobmanager.rpc.address": address,
            "jobmanager.bind-host": "0.0.0.0",
            "jobmanager.rpc.port": self.rpc,
            "blob.server.port": self.blob,
            "rest.address": address,
            "rest.bind-address": "0.0.0.0",
            "rest.port": self.rest,
            "io.tmp.dirs": folder,
            **_half_the_waits(yaml.safe_load(settings)),
        }

    def start(self) -> None:
        """Start the job manager and the job server."""
        package = "org.apache.flink.runtime.entrypoint"
        self._start("jobmanager", f"{package}.StandaloneSessionClusterEntrypoint", "-Xmx640m", {})
        values = {"JARS": job_server("Flink"), "HOST:8081": f"{self.address}:{self.rest}", "8099": self.jobs_port}
        command = page_command("Flink", "FlinkJobServerDriver", values)
        ports = "--artifact-port=0", "--expansion-port=0"
        folder = f"--artifacts-dir={self.processes.folder}/artifacts"
        self.processes.start("jobserver", *JAVA, "-Xmx512m", *command[1:], *ports, folder)
        self.processes.wait_for_port("jobmanager", self.rest, self.address)
        self.processes.wait_for_port("jobserver", self.jobs_port)

    def start_task_manager(self, name: str, slots: int, *, host: str = "", address: str = "127.0.0.1") -> None:
        """Start a task manager and its pool, in the network namespace `host` if it is given, and wait for its slots."""
        self._started += 1
        identity = f"{name}-{self._started}"
        options = {"taskmanager.resource-id": identity, "taskmanager.host": address, **_MEMORY}
        options["taskmanager.numberOfTaskSlots"] = slots
        entry = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        self._start(name, entry, "-Xmx640m", options, host)
        pool = f"{name}-pool"
        if not self.processes.runs(pool):
            self.processes.start_pool(pool, self.pool, host)
        wait_until(lambda: self.processes.check(name) and identity in self.task_managers(), f"{name} joins")

    def workers(self, name: str) -> list[Any]:
        """Return the Python workers of a task manager, the newest first."""
        return self.processes.children(f"{name}-pool")

    def task_managers(self) -> list[str]:
        """Return the names of the task managers that the job manager knows, each with the number of its start."""
        return [each["id"] for each in self.ask("taskmanagers")["taskmanagers"]]

    def jobs(self) -> dict[str, str]:
        """Return the state of each job by Flink's own id."""
        return {job["id"]: job["status"] for job in self.ask("jobs")["jobs"]}

    def stages(self, job: str) -> int:
        """Return how many stages with steps of the pipeline a job has."""
        return sum(task["name"].count("MapPartition at [") for task in self.ask(f"jobs/{job}")["vertices"])

    def restarts(self, job: str) -> int:
        """Return how often a job was restarted."""
        return self.processes.log("jobmanager").count(f"({job}) switched from state RESTARTING to RUNNING")

    def ask(self, path: str) -> Any:
        """Return the answer of Flink's REST interface."""
        with urllib.request.urlopen(f"http://{self.address}:{self.rest}/{path}", timeout=10) as answer:
            return json.load(answer)

    def options(self) -> dict[str, Any]:
        """Return Beam's options for a job at this cluster."""
        embed = page_command("Flink", "audioclip embed", {})
        expiration = int(embed[embed.index("--environment_expiration_millis") + 1]) // 2  # as _half_the_waits
        master = f"{self.address}:{self.rest}"
        options = {"parallelism": 2, "flink_master": master, "environment_expiration_millis": expiration}
        return super().options() | options

    def _start(self, name: str, entry: str, heap: str, options: dict[str, object], host: str = "") -> None:
        settings = [f"-D{key}={value}" for key, value in {**self._options, **options}.items()]
        command = [*self._java, f"{flink_jars()}/*", entry, "--configDir", "conf", *settings]
        self.processes.start(name, JAVA[0], heap, "-XX:MaxDirectMemorySize=900m", *command[1:], host=host)


def _half_the_waits(settings: dict[str, Any]) -> dict[str, str]:
    """Return heartbeats and the first delay of a restart, half as long as on the page: their proportions are what counts."""
    backoff = "restart-strategy.exponential-delay.initial-backoff"
    seconds = int(settings[backoff].removesuffix(" s"))
    waits = {name: str(settings[name] // 2) for name in ("heartbeat.interval", "heartbeat.timeout")}
    return waits | {backoff: f"{seconds * 500} ms"}
