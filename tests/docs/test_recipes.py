"""The recipes in scripts/schedule and the scripts for Dataflow, checked as the programs that read them would."""

from __future__ import annotations

import argparse
import ast
import configparser
import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from apache_beam.options.pipeline_options import WorkerOptions

from audioclip_beam.model.heads import find_head
from audioclip_beam.model.text.head import TEXT
from audioclip_beam.pipeline.cli import parser as command_line
from audioclip_beam.pipeline.flags import add_flags
from audioclip_beam.pipeline.inference.shared_encoder import describe_model
from audioclip_beam.pipeline.options import EmbedOptions, reject_unknown_flags
from audioclip_beam.pipeline.prepare.job import encoder_settings
from tests.support.corpus import read
from tests.support.environments import create_environment
from tests.support.pages import ROOT, commands, read_page

RECIPES = ROOT / "scripts" / "schedule"
LAUNCHES = {"text": "flex_launch.json", "image": "flex_launch_image.json", "audio": "flex_launch_audio.json"}


def parse(flags: list[str]) -> argparse.Namespace:
    """Parse the flags of one `audioclip embed`; an unknown one fails the test."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    add_flags(parser)
    return parser.parse_args(flags)


def flags_of(command: list[str]) -> list[str]:
    """Return the flags behind `audioclip embed`, up to a redirection."""
    place = command.index("embed") - 1
    assert command[place].rpartition("/")[2] == "audioclip"
    flags = command[place + 2 :]
    ends = [n for n, word in enumerate(flags) if word.startswith((">", "2>"))]
    return flags[: ends[0]] if ends else flags


def check(flags: list[str], head: str = "text") -> argparse.Namespace:
    """Check a nightly command: its head, and that it has shards, an output, a checkpoint, stable ids, and --max_rejected."""
    arguments = parse(flags)
    assert arguments.input
    assert arguments.output
    assert arguments.checkpoint.endswith(("AudioCLIP-Full-Training.pt", f"{head}-head.safetensors"))
    assert arguments.id_field == (["id"] if head == "text" else None), "files have their paths as ids"
    assert arguments.max_rejected == "1%"
    options = EmbedOptions(flags)
    if not options.accelerator:  # which is for remote runners
        options.check()
    assert (options.head or "text") == head
    return arguments


def assert_cron(schedule: str) -> None:
    """Check that a schedule has five fields, each a number in its range or a star."""
    fields = schedule.split()
    assert len(fields) == 5
    for field, highest in zip(fields, (59, 23, 31, 12, 7), strict=True):
        assert field == "*" or 0 <= int(field) <= highest


def test_crontab() -> None:
    """Check the line for /etc/cron.d: a time, a user and a command without a percent sign (a newline to cron)."""
    lines = [line for line in (RECIPES / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    settings = [line for line in lines if re.fullmatch(r"[A-Z]+=\S+", line)]
    for line, head in zip([line for line in lines if line not in settings], ("text", "image"), strict=True):
        *schedule, user, command = line.split(maxsplit=6)
        assert_cron(" ".join(schedule))
        assert user == "audioclip"
        assert not re.search(r"(?<!\\)%", command)
        command = command.replace(r"\%", "%")
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
        check(flags_of(shlex.split(command)), head)


def unit(name: str) -> configparser.ConfigParser:
    """Parse a systemd unit."""
    parser = configparser.ConfigParser(interpolation=None, strict=True, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((RECIPES / name).read_text())
    return parser


@pytest.mark.parametrize(("name", "head"), [("audioclip-beam", "text"), ("audioclip-photos", "image")])
def test_systemd_units(name: str, head: str) -> None:
    """Check that the timer starts the service of its name, and that systemd passes the service's command on unchanged."""
    timer, service = unit(f"{name}.timer"), unit(f"{name}.service")
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert re.fullmatch(r"\*-\*-\* \d\d:\d\d:\d\d", timer["Timer"]["OnCalendar"])
    assert service["Service"]["Type"] == "oneshot"
    command = service["Service"]["ExecStart"]
    assert command.startswith("/"), "systemd requires an absolute path"
    assert "%" not in command.replace("%%", "")
    check(flags_of(shlex.split(command.replace("%%", "%"))), head)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Run systemd's own check of the units, with a program that exists."""
    for name in (path.name for path in RECIPES.glob("*.[ts]*") if path.suffix in (".timer", ".service")):
        text = (RECIPES / name).read_text().replace("/srv/audioclip/.venv/bin/audioclip", "/bin/true")
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert str(tmp_path) not in done.stderr, done.stderr


def test_kubernetes_cronjob() -> None:
    """Check that the CronJob runs one job at a time, retries it, is not root, and mounts the volumes that it names."""
    jobs = list(yaml.safe_load_all((RECIPES / "cronjob.yaml").read_text()))
    for job, head in zip(jobs, ("text", "audio"), strict=True):
        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
        assert_cron(job["spec"]["schedule"])
        assert job["spec"]["concurrencyPolicy"] == "Forbid"
        pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        assert pod["restartPolicy"] in ("Never", "OnFailure")
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        arguments = check(flags_of(["audioclip", *container["args"]]), head)
        mounted = tuple(mount["mountPath"] + "/" for mount in container["volumeMounts"])
        for path in (*arguments.input, arguments.output + "/", arguments.checkpoint, arguments.tokenizer_path):
            assert path is None or path.startswith(mounted)
    assert len({job["metadata"]["name"] for job in jobs}) == len(jobs)


def test_flex_template() -> None:
    """Check that Cloud Scheduler sends parameters of the template, and that these are flags of embed."""
    template = json.loads((RECIPES / "flex_template.json").read_text())
    declared = {parameter["name"]: parameter for parameter in template["parameters"]}
    known = {"name", "label", "helpText", "isOptional", "regexes"}
    assert all({"name", "label", "helpText"} <= set(parameter) <= known for parameter in declared.values())
    assert set(declared) <= set(vars(parse([])))
    of_media = {flag.name for name in ("image", "audio") for flag in find_head(name).flags}
    assert {"head", *of_media} <= set(declared)
    for head, file in LAUNCHES.items():
        launch = json.loads((RECIPES / file).read_text())["launchParameter"]
        assert set(launch) == {"jobName", "containerSpecGcsPath", "parameters", "environment"}
        parameters = launch["parameters"]
        assert (
            {name for name, parameter in declared.items() if not parameter.get("isOptional")}
            <= set(parameters)
            <= set(declared)
        )
        for name, value in parameters.items():
            assert all(re.fullmatch(pattern, value) for pattern in declared[name].get("regexes", []))
        check([f"--{name}={value}" for name, value in parameters.items()], head)


def test_cloud_scheduler_script(tmp_path: Path) -> None:
    """Check that the nightly request is the one that scripts/flex_template.sh makes once."""
    (tmp_path / "night").mkdir()
    (tmp_path / "first_launch").mkdir()
    (night,) = calls_of("schedule/cloud_scheduler.sh", "gcloud", tmp_path / "night")
    assert_cron(night[night.index("--schedule") + 1])
    body = json.loads("".join(night[night.index("--message-body") + 1 :]).partition("--oauth")[0])
    first_launch = calls_of("flex_template.sh", "docker gcloud curl", tmp_path / "first_launch")[-1]
    assert body == json.loads("".join(first_launch[first_launch.index("--stdin--") + 1 :]))
    assert night[night.index("--uri") + 1] == next(word for word in first_launch if word.startswith("https:"))
    assert body["launchParameter"]["environment"]["sdkContainerImage"] == "r-docker.pkg.dev/p/a/i:1"
    assert "BUCKET" not in json.dumps(body)


def calls_of(script: str, fake: str, folder: Path, *arguments: str, head: str = "") -> list[list[str]]:
    """Return the command lines with which a script calls the programs named in `fake`, which are replaced by a log."""
    tools, log = folder / "tools", folder / "log"
    tools.mkdir()
    for name in fake.split():
        body = 'printf "%s\\n" "--stdin--"; cat' if name == "curl" else ":"
        text = f'#!/bin/sh\n{{ printf "%s\\n" "{name}" "$@"; {body}; printf "%s\\n" "--end--"; }} >>{log}\n'
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    settings = {
        "PROJECT": "p",
        "REGION": "r",
        "BUCKET": "b",
        "IMAGE": "r-docker.pkg.dev/p/a/i:1",
        "SCHEDULER": "s",
        "HEAD": head,
    }
    path = f"{tools}:{os.environ['PATH']}"
    subprocess.run([ROOT / "scripts" / script, *arguments], env={**os.environ, **settings, "PATH": path}, check=True)
    return [part.strip("\n").split("\n") for part in log.read_text().split("--end--\n") if part]


@pytest.mark.parametrize("head", ["", "image", "audio"])
def test_dataflow_script(head: str, tmp_path: Path) -> None:
    """Check that the script runs one command with known flags, and with paths that launcher and workers can read."""
    (command,) = calls_of("dataflow.sh", "audioclip", tmp_path, head=head)
    options = EmbedOptions(flags_of(command))
    options.check()
    reject_unknown_flags(options)
    assert options.accelerator == "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver"
    paths = [*(options.input or []), options.output, options.checkpoint, options.tokenizer_path]
    assert options.head == (head or "text")
    assert all(path is None or str(path).startswith("gs://b/") for path in paths), (
        "the launcher reads them too, to compute the fingerprint"
    )
    assert "save_main_session" not in " ".join(command)
    assert "no_use_multiple_sdk_containers" not in " ".join(command), "one process for each vCPU"
    workers = json.loads((RECIPES / "flex_launch.json").read_text())["launchParameter"]["environment"]
    pool = options.view_as(WorkerOptions)
    assert (pool.disk_size_gb, pool.max_num_workers) == (workers["diskSizeGb"], workers["maxWorkers"])


def test_flags_of_the_dataflow_script_can_be_replaced(tmp_path: Path) -> None:
    """`embed` refuses a flag that is given twice."""
    given = ["--max_num_workers", "4", "--dtype=float16", "--input=gs://b/x.jsonl"]
    (command,) = calls_of("dataflow.sh", "audioclip", tmp_path, *given)
    options = EmbedOptions(command_line.parse(command[1:]).argv)
    assert options.view_as(WorkerOptions).max_num_workers == 4
    assert (options.dtype, options.input) == ("float16", ["gs://b/x.jsonl"])


def test_flex_template_script(tmp_path: Path) -> None:
    """Check that the script builds and pushes the image, makes the template, and launches it with declared parameters."""
    commands = calls_of("flex_template.sh", "docker gcloud curl", tmp_path)
    assert [command[:2] for command in commands[:2]] == [["docker", "build"], ["docker", "push"]]
    build, _, launch = commands[2:]
    assert build[1:4] == ["dataflow", "flex-template", "build"]
    assert (ROOT / build[build.index("--metadata-file") + 1]).is_file()
    parameters = json.loads("".join(launch[launch.index("--stdin--") + 1 :]))["launchParameter"]["parameters"]
    declared = {part["name"] for part in json.loads((RECIPES / "flex_template.json").read_text())["parameters"]}
    assert set(parameters) <= declared
    check([f"--{name}={value}" for name, value in parameters.items()])


def test_all_recipes_of_a_kind_give_one_fingerprint(tmp_path: Path, small_head: str, vocabulary: Path) -> None:
    """Whichever launches a run, it reuses the others' vectors: those for Dataflow, and those for one machine."""
    (tmp_path / "script").mkdir()
    (script,) = calls_of("dataflow.sh", "audioclip", tmp_path / "script")
    launch = json.loads((RECIPES / "flex_launch.json").read_text())["launchParameter"]
    job = next(yaml.safe_load_all((RECIPES / "cronjob.yaml").read_text()))
    container = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    crontab = (RECIPES / "crontab").read_text().splitlines()[-2].split(maxsplit=6)[6]
    service = unit("audioclip-beam.service")["Service"]["ExecStart"].replace("%%", "%")
    dag = re.findall(r'"(cd .+?)"\n +"(.+?)"\n', (RECIPES / "airflow_dag.py").read_text())
    kinds = {
        "Dataflow": [
            flags_of(script),
            [f"--{name}={value}" for name, value in launch["parameters"].items()],
        ],
        "one machine": [
            flags_of(shlex.split(crontab.replace(r"\%", "%"))),
            flags_of(shlex.split(service)),
            flags_of(["audioclip", *container["containers"][0]["args"]]),
            flags_of(shlex.split("".join(dag[0]))),
        ],
    }
    for kind, recipes in kinds.items():
        fingerprints = set()
        for flags in recipes:
            options = EmbedOptions(flags)
            settings = encoder_settings(options, TEXT)
            settings = replace(settings, path=small_head, tokenizer_path=str(vocabulary), device="cpu")
            fingerprints.add(describe_model(TEXT, settings, options.vector_dtype).info.fingerprint)
        assert len(fingerprints) == 1, kind


def test_flex_launcher_adds_the_command() -> None:
    """Run the launcher's file with flags and without a command: it runs embed."""
    launcher = [sys.executable, str(RECIPES / "flex_launcher.py"), "--max_shrink=7"]
    done = subprocess.run(launcher, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "See `audioclip embed --help`" in done.stderr
    assert "'7' is not a number from 0 to 1" in done.stderr


@pytest.mark.slow
def test_flex_launcher_may_make_a_template() -> None:
    """--template_location, which is refused elsewhere, passes: the next error is that of the runner's name."""
    flags = "--input=a", "--output=b", "--template_location=gs://b/t", "--runner=Flnk"
    launcher = [sys.executable, str(RECIPES / "flex_launcher.py"), *flags]
    done = subprocess.run(launcher, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown --runner Flnk" in done.stderr


def test_airflow_dag() -> None:
    """Check that the DAG has one BashOperator and uses Airflow's argument names."""
    text = (RECIPES / "airflow_dag.py").read_text()
    tree = ast.parse(text)
    calls = {
        call.func.id: call for call in ast.walk(tree) if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }
    dag = {keyword.arg: keyword.value for keyword in calls["DAG"].keywords}
    assert set(dag) == {"dag_id", "schedule", "start_date", "catchup", "max_active_runs", "default_args"}
    assert_cron(ast.literal_eval(dag["schedule"]))
    assert ast.literal_eval(dag["max_active_runs"]) == 1
    assert ast.literal_eval(dag["catchup"]) is False
    operator = {keyword.arg: keyword.value for keyword in calls["BashOperator"].keywords}
    assert set(operator) == {"task_id", "bash_command"}
    (assigned,) = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    for command, head in zip(ast.literal_eval(assigned).values(), ("text", "image"), strict=True):
        assert "{{" not in command, "Airflow would expand it as a template"
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
        check(flags_of(shlex.split(command)), head)


LOAD = """
import sys
from airflow.dag_processing.dagbag import DagBag

bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
assert set(bag.dags) == {"audioclip_beam", "audioclip_photos"}
for dag in bag.dags.values():
    (task,) = dag.tasks
    assert (dag.max_active_runs, dag.catchup) == (1, False)
    assert (task.task_type, task.retries) == ("BashOperator", 2)
"""


@pytest.mark.extra
@pytest.mark.slow
@pytest.mark.network
def test_airflow_loads_and_runs_the_dag(tmp_path: Path, small_head: str, vocabulary: Path) -> None:
    """Airflow 3 loads the DAG without warnings, and runs its command, in which only the directories are others."""
    programs = create_environment("airflow", "apache-airflow==3.3.2", pinned=False)
    server, dags = tmp_path / "server", tmp_path / "dags"
    (server / ".venv" / "bin").mkdir(parents=True)
    (server / ".venv" / "bin" / "audioclip").symlink_to(Path(sys.executable).with_name("audioclip"))
    (server / ".cache").mkdir()
    shutil.copy(small_head, server / ".cache" / "AudioCLIP-Full-Training.pt")
    (server / ".cache" / vocabulary.name).symlink_to(vocabulary)
    (tmp_path / "texts").mkdir()
    rows = [{"id": f"r{n}", "text": f"text number {n}"} for n in range(20)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "texts" / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    dags.mkdir()
    recipe = (RECIPES / "airflow_dag.py").read_text()
    for folder, name in ((server, "/srv/audioclip"), (tmp_path / "texts", "/srv/texts")):
        assert name in recipe
        recipe = recipe.replace(name, str(folder))
    (dags / "airflow_dag.py").write_text(recipe)

    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    variables |= {"AIRFLOW__CORE__DAGS_FOLDER": str(dags), "PATH": f"{programs}:{os.environ['PATH']}"}

    def airflow(*command: str) -> str:
        done = subprocess.run([*command], env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout + done.stderr

    assert "deprecated" not in airflow(str(programs / "python"), "-c", LOAD, str(dags))
    airflow("airflow", "db", "migrate")
    airflow("airflow", "dags", "test", "audioclip_beam", "2026-01-02")
    assert sorted(read(server / "out")["id"].to_pylist()) == sorted(str(row["id"]) for row in rows)


def test_the_guide_links_every_recipe() -> None:
    """Check that docs/scheduling.md links every file of the folder, and parse the command that it shows."""
    guide = read_page("docs/scheduling.md")
    for path in RECIPES.iterdir():
        assert path.name == "__pycache__" or f"(../scripts/schedule/{path.name})" in guide
    (command,) = commands(guide)
    check(flags_of(shlex.split(command)))
