"""Flink, Spark and Prism: fetched once into a folder below .cache, and their processes, each ended by its id."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from tests.support.pages import command_line, read_page, sections
from tests.support.paths import ROOT
from tests.support.preloaded import preloaded_programs
from tests.support.tools import run_online

ENGINES = Path(os.environ.get("AUDIOCLIP_BEAM_ENGINES", ROOT / ".cache" / "engines"))

_PACKAGES = "util lang nio net time io util.concurrent lang.invoke"
# What Flink, Spark and Kryo open of Java 17; a quick start matters more here than the speed of compiled code.
JAVA = (
    "java",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _PACKAGES.split()),
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/sun.security.action=ALL-UNNAMED",
)


def flink_jars() -> Path:
    """Return the folder of Flink's own jars."""
    return _fetch("flink-1.19.0", lambda folder: _unpack("apache-flink-libraries==1.19.0", {"deps/lib/": "."}, folder))


def spark_jars() -> Path:
    """Return the folder of Spark's own jars."""
    return _spark_home() / "jars"


def spark_python() -> Path:
    """Return a program that runs this Python with PySpark."""
    home = _spark_home()
    (py4j,) = (home / "python").glob("py4j-*.zip")
    script = f'#!/bin/sh\nexport SPARK_HOME={home} PYTHONPATH={home}/python:{py4j}\nexec {sys.executable} "$@"\n'
    program = home / "run-python"
    if not program.exists() or program.read_text() != script:
        program.write_text(script)
        program.chmod(0o755)
    return program


def _spark_home() -> Path:
    parts = {"deps/jars/": "jars", "deps/bin/": "bin", "pyspark/": "python/pyspark", "lib/": "python"}
    return _fetch("pyspark-3.5.0", lambda folder: _unpack("pyspark==3.5.0", parts, folder))


def job_server(runner: str) -> Path:
    """Return a folder with Beam's job server of "Flink" or "Spark" in one jar, as Beam's own release of it is.

    It sends its jars to the engine with every job, and waits 80 ms for Flink's answer to each. Spark brings slf4j itself.
    """
    pom = str(ROOT / "tests" / "engines" / "pom.xml")
    artifact = {"Flink": "beam-runners-flink-1.19", "Spark": "beam-runners-spark-3"}[runner]
    maven = ["mvn", "-q", "-B", "-f", pom, f"-Drunner={artifact}", "dependency:copy-dependencies"]

    def make(folder: Path) -> None:
        jars = folder / "jars"
        run_online([*maven, f"-DoutputDirectory={jars}"])
        merged = [jar for jar in sorted(jars.glob("*.jar")) if runner == "Flink" or "slf4j" not in jar.name]
        _merge(merged, folder / "job-server.jar")
        shutil.rmtree(jars)

    return _fetch(f"{runner.lower()}-job-server-2.62.0", make)


def _merge(jars: Sequence[Path], merged: Path) -> None:
    """Write what is in all jars into one; of files with one name the first counts."""
    services, names = dict[str, bytes](), set[str]()
    with zipfile.ZipFile(merged, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as output:
        for path in jars:
            with zipfile.ZipFile(path) as jar:
                for name in jar.namelist():
                    if name.startswith("META-INF/services/"):
                        services[name] = services.get(name, b"") + jar.read(name) + b"\n"
                    elif name not in names and not name.endswith((".SF", ".RSA", ".DSA")):
                        names.add(name)
                        output.writestr(name, jar.read(name))
        for name, data in services.items():
            output.writestr(name, data)


def local_job_server(runner: str, folder: Path) -> Path:
    """Return a jar in `folder` that starts Beam's job server with the engine in its process; `runner` is "Flink" or "Spark".

    It has only a manifest, which names the jars.
    """
    engine = flink_jars().glob("flink-dist*.jar") if runner == "Flink" else spark_jars().glob("*.jar")
    jars = [*job_server(runner).glob("*.jar"), *engine]
    classes = " ".join(jar.resolve().as_uri() for jar in jars)
    values = {
        "Manifest-Version": "1.0",
        "Main-Class": f"org.apache.beam.runners.{runner.lower()}.{runner}JobServerDriver",
        "Class-Path": classes,
    }
    lines = [f"{name}: {value}" for name, value in values.items()]
    # A line has at most 72 bytes, and goes on in lines that begin with a space.
    parts = ["\r\n ".join(line[start : start + 70] for start in range(0, len(line), 70)) for line in lines]
    path = folder / f"{runner}.jar"
    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "\r\n".join(parts) + "\r\n\r\n")
    return path


def prism() -> Path:
    """Return the program Prism."""
    command = ["go", "install", "github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0"]
    return _fetch("prism-2.77.0", lambda folder: run_online(command, {"GOBIN": str(folder)})) / "prism"


def _fetch(name: str, fetch: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the engines; `fetch` fills it on the first call, in one process at a time."""
    folder = ENGINES / name
    ENGINES.mkdir(parents=True, exist_ok=True)
    with FileLock(ENGINES / f"{name}.lock"):
        if not folder.exists():
            unfinished = ENGINES / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            fetch(unfinished)
            unfinished.rename(folder)
    return folder


def _unpack(requirement: str, parts: Mapping[str, str], folder: Path) -> None:
    """Put the files below each part of a source distribution into a directory of `folder`."""
    download = folder / "download"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    run_online([*pip, "--constraint", str(ROOT / "constraints.txt"), "--dest", str(download), requirement])
    (archive,) = download.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            path = member.name.partition("/")[2]  # without the name of the distribution
            for part, target in parts.items():
                if path.startswith(part):
                    member.name = f"{target}/{path.removeprefix(part)}"
                    tar.extract(member, folder, filter="data")
    shutil.rmtree(download)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait until `condition` returns a true value; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def page_command(section: str, word: str, values: Mapping[str, object]) -> list[str]:
    """Return the arguments of the command in that section of docs/runners.md that contains `word`, as command_line does."""
    return shlex.split(command_line(sections(read_page("docs/runners.md"))[section], word, values))


class Cluster:
    """A cluster with a job server on `jobs_port` and worker pools on `pool` of each of its machines."""

    jobs_port: int
    pool: int

    def options(self) -> dict[str, Any]:
        """Return Beam's options for a job at this cluster."""
        return {
            "runner": "PortableRunner",
            "job_endpoint": f"localhost:{self.jobs_port}",
            "environment_type": "EXTERNAL",
            "environment_config": f"localhost:{self.pool}",
        }

    def flags(self) -> list[str]:
        """Return `options` as flags."""
        return [f"--{name}={value}" for name, value in self.options().items()]


class Processes:
    """The processes of an engine, by name, with their output in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: object, environment: Mapping[str, str] | None = None, host: str = "") -> None:
        """Start a process, in the network namespace `host` if it is given."""
        prefix = ["ip", "netns", "exec", host] if host else []
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*prefix, *map(str, command)],
                cwd=self.folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def start_pool(self, name: str, port: int, host: str = "") -> None:
        """Start a worker pool by the command of docs/runners.md, and wait for it.

        Its workers import the project and the tests' stub model. On this machine they are forks of a process that has
        imported Beam already: Spark starts one for nearly every task.
        """
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        programs = Path(sys.executable).parent if host else preloaded_programs()
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": ":".join(paths)}
        python, *command = page_command("Flink", "worker_pool_main", {"50000": port})
        assert python == "python"
        self.start(name, sys.executable, *command, environment=environment, host=host)
        wait_until(lambda: "Started worker pool" in self.log(name) and self.check(name), f"{name} starts")

    def log(self, name: str) -> str:
        """Return what a process printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def runs(self, name: str) -> bool:
        """Return whether a process was started and has not ended."""
        return name in self._processes and self._processes[name].poll() is None

    def check(self, name: str) -> bool:
        """Return True; fail if the process has ended."""
        assert self._processes[name].poll() is None, f"{name} ended: {self.log(name)[-3000:]}"
        return True

    def wait_for_port(self, name: str, port: int, address: str = "127.0.0.1") -> None:
        """Wait until a process listens on `port`."""

        def listens() -> bool:
            self.check(name)
            with socket.socket() as probe:
                return probe.connect_ex((address, port)) == 0

        wait_until(listens, f"{name} listens on {port}")

    def children(self, name: str) -> list[psutil.Process]:
        """Return the processes that a process started, the newest first."""
        return sorted(self._descendants(self._processes[name]), key=lambda child: -child.create_time())

    def kill(self, name: str) -> None:
        """Kill a process and all that it started."""
        process = self._processes.pop(name)
        for child in self._descendants(process):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Kill all, and remove what they wrote, gigabytes of copied jars, except their output."""
        for name in list(self._processes):
            self.kill(name)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != ".log":
                path.unlink()

    @staticmethod
    def _descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(process.pid).children(recursive=True)
        return []
