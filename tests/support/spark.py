"""A standalone Spark cluster: a master, one worker with two cores, a worker pool, and Beam's job server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.engines import JAVA, Cluster, Processes, job_server, page_command, spark_jars
from tests.support.tools import free_port


class Spark(Cluster):
    """A cluster whose only executor shares a machine with one pool."""

    def __init__(self, folder: Path) -> None:
        self.processes = Processes(folder)
        self.master, self.pool, self.jobs_port = (free_port() for _ in range(3))

    def start(self) -> None:
        """Start all."""
        home, url = self.processes.folder / "home", f"spark://localhost:{self.master}"
        (home / "bin").mkdir(parents=True)
        (home / "jars").symlink_to(spark_jars())
        (home / "RELEASE").touch()
        environment = {
            "SPARK_HOME": str(home),
            "SPARK_SCALA_VERSION": "2.12",
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_HOSTNAME": "localhost",
        }
        spark = *JAVA, "-Xmx512m", "-cp", f"{spark_jars()}/*"
        address = "--host", "localhost", "--port"
        master = *address, self.master, "--webui-port", free_port()
        self.processes.start(
            "master", *spark, "org.apache.spark.deploy.master.Master", *master, environment=environment
        )
        self.processes.wait_for_port("master", self.master)
        worker = "-c", 2, "-m", "2g", *address, 0, "--webui-port", free_port(), "--work-dir", home / "work", url
        self.processes.start(
            "worker", *spark, "org.apache.spark.deploy.worker.Worker", *worker, environment=environment
        )
        values = {
            "JARS": job_server("Spark"),
            "SPARK_HOME": home,
            "spark://HOST:7077": url,
            "8099": self.jobs_port,
        }
        server = page_command("Spark", "SparkJobServerDriver", values)
        ports = "--artifact-port=0", "--expansion-port=0"
        folder = f"--artifacts-dir={self.processes.folder}/artifacts"
        self.processes.start("jobserver", *JAVA, "-Xmx1g", *server[1:], *ports, folder, environment=environment)
        self.processes.start_pool("pool", self.pool)
        self.processes.wait_for_port("jobserver", self.jobs_port)

    def options(self) -> dict[str, Any]:
        """Return Beam's options for a job at this cluster."""
        return super().options() | {"files_to_stage": [f"{job_server('Spark')}/job-server.jar"]}
