"""docs/runners.md: the manifest for Kubernetes has the settings and commands of the page, which tests/engines runs."""

from __future__ import annotations

import argparse
import re
from typing import Any

import pytest
import yaml
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions, SparkRunnerOptions
from apache_beam.runners.portability.flink_runner import FlinkJarJobServer
from apache_beam.runners.portability.spark_runner import SparkJarJobServer

from audioclip_beam.pipeline.options import EmbedOptions, reject_unknown_flags
from tests.support.pages import blocks, command_line, read_page, sections
from tests.support.paths import ROOT

PAGE = sections(read_page("docs/runners.md"))


def flags_of(command: str) -> dict[str, Any]:
    """Return the options of a command `audioclip embed`, without those that name files."""
    options = EmbedOptions(command.split()[2:])
    reject_unknown_flags(options)
    files = {"input", "output", "checkpoint", "tokenizer_path"}
    return {name: value for name, value in options.get_all_options(drop_default=True).items() if name not in files}


def test_the_manifest_for_kubernetes() -> None:
    """It is valid YAML, with the fields of Flink's operator, and says what the page says for plain machines."""
    cluster, job = yaml.safe_load_all((ROOT / "examples/kubernetes/flink.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("flink.apache.org/v1beta1", "FlinkDeployment")
    spec, name = cluster["spec"], cluster["metadata"]["name"]
    assert set(spec) == {
        "image", "flinkVersion", "mode", "serviceAccount", "flinkConfiguration", "jobManager", "taskManager"
    }  # fmt: skip
    version = spec["flinkVersion"].removeprefix("v").replace("_", ".")
    assert f"Flink {version}, standalone" in read_page("docs/runners.md")
    assert spec["image"] == f"flink:{version}"
    assert all(isinstance(value, str) for value in spec["flinkConfiguration"].values()), "the operator takes strings"
    (settings,) = blocks(PAGE["Flink"], "yaml")
    slots = int(spec["flinkConfiguration"].pop("taskmanager.numberOfTaskSlots"))
    assert spec["flinkConfiguration"] == {key: str(value) for key, value in yaml.safe_load(settings).items()}
    flink, pool = spec["taskManager"]["podTemplate"]["spec"]["containers"]
    assert flink == {"name": "flink-main-container"}
    assert " ".join(pool["command"]) == command_line(PAGE["Flink"], "worker_pool_main", {})

    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    (server,), (launcher,) = pod["initContainers"], pod["containers"]
    assert server["image"] == f"apache/beam_flink{version}_job_server:{beam_version()}"
    driver = command_line(PAGE["Flink"], "FlinkJobServerDriver", {"HOST": f"{name}-rest"})
    assert server["args"] == re.findall(r"--\S+", driver)
    embed = command_line(PAGE["Flink"], "audioclip embed", {"HOST": f"{name}-rest"})
    flags, of_job_server = split_flags(" ".join([*launcher["command"], *launcher["args"]]))
    assert (flags, of_job_server) == split_flags(embed)
    assert flags["parallelism"] == slots * spec["taskManager"]["replicas"]
    assert launcher["image"] == pool["image"]


@pytest.mark.parametrize(
    ("engine", "options", "server"),
    [("Flink", FlinkRunnerOptions, FlinkJarJobServer), ("Spark", SparkRunnerOptions, SparkJarJobServer)],
)
def test_the_versions_of_engines(engine: str, options: Any, server: Any) -> None:
    """The table names the versions that the installed Beam takes, and the page the jar of each one that it writes about."""
    section, flag = PAGE["Versions of Flink and Spark"], f"{engine.lower()}_version"
    ((versions, default),) = re.findall(rf"^\| {engine} \| `--{flag}` ([^|]+) \| (\S+) \|", section, re.MULTILINE)
    parser = argparse.ArgumentParser()
    options._add_argparse_args(parser)
    (action,) = [action for action in parser._actions if action.dest == flag]
    assert (versions.split(", "), default) == (action.choices, action.default)

    assert f"what Beam {beam_version().rpartition('.')[0]} takes" in section
    jars = re.findall(rf"beam-runners-{engine.lower()}-([\d.]+)-job-server-[\d.]+\.jar", section)
    assert jars[0] == default
    for version in jars:
        jar = server(PipelineOptions([f"--{flag}={version}"])).path_to_jar().rpartition("/")[2]
        assert f"`{jar}`" in section
    assert server(PipelineOptions([])).path_to_jar().rpartition("/")[2] in section


def split_flags(line: str) -> tuple[dict[str, object], list[str]]:
    """Return the flags of a command, and the values of the one that `embed` accepts because the job server describes it."""
    option = r" --environment_expiration_millis[ =](\d+)"
    return flags_of(re.sub(option, "", line)), re.findall(option, line)


def beam_version() -> str:
    """Return the version of Beam that constraints.txt pins."""
    return re.findall(r"^apache-beam(?:\[.*\])?==(\S+)", read_page("constraints.txt"), re.MULTILINE)[0]
