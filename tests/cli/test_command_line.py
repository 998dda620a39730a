"""The command line as users and schedulers run it; no token of it is ignored, and at most three lines say what is wrong."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from audioclip_beam.model import TextEncoder
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.cli.command_table import COMMANDS
from audioclip_beam.pipeline.cli.embed_command import run_summary
from audioclip_beam.pipeline.cli.parser import parse
from audioclip_beam.pipeline.options import EmbedOptions, OptionsError, reject_unknown_flags
from tests.support.preloaded import preloaded_programs
from tests.support.program import run_program
from tests.support.snapshots import batch_of, write_snapshot

TEXTS = [
    f"{animal} {verb} in the {place}" for animal in ("dog", "cat") for verb in ("barks", "sleeps") for place in "abc"
]


def write_every_format(directory: Path, texts: Sequence[str]) -> int:
    """Write the texts in every format and compression; return the number of shards."""
    directory.mkdir()
    jsonl = "".join(json.dumps({"id": f"j{n}", "text": text}) + "\n" for n, text in enumerate(texts)).encode()
    (directory / "a.txt").write_text("\n".join(texts) + "\n")
    (directory / "b.jsonl").write_bytes(jsonl)
    (directory / "c.jsonl.gz").write_bytes(gzip.compress(jsonl))
    (directory / "d.jsonl.bz2").write_bytes(bz2.compress(jsonl))
    (directory / "e.jsonl.xz").write_bytes(lzma.compress(jsonl))
    (directory / "f.jsonl.zst").write_bytes(zstandard.compress(jsonl))
    for name, delimiter in (("g.csv", ","), ("h.tsv", "\t")):
        with (directory / name).open("w", newline="") as handle:
            writer = csv.writer(handle, delimiter=delimiter)
            writer.writerows([("id", "text"), *((f"c{n}", text) for n, text in enumerate(texts))])
    pq.write_table(pa.table({"id": [f"p{n}" for n in range(len(texts))], "text": list(texts)}), directory / "i.parquet")
    return 9


@pytest.mark.slow
def test_every_format_through_the_command_line(
    tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command embeds every format; the vectors equal the encoder's, and DuckDB and Polars read them."""
    shards = write_every_format(tmp_path / "in", TEXTS)
    program = [preloaded_programs() / "audioclip"]
    done = run_program(
        "embed", "--input", tmp_path / "in/*", "--output", tmp_path / "out", "--checkpoint", "untrained",
        "--tokenizer_path", vocabulary, program=program,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{shards * len(TEXTS)} read = {shards * len(TEXTS)} embedded + 0 reused + 0 rejected" in done.stdout
    assert f"{len(TEXTS)} texts" in done.stdout
    assert "WARNING: the weights are untrained" in done.stderr
    current = run_program("current", tmp_path / "out", program=program).stdout.strip()
    files = f"{current}/part-*.parquet"
    table = duckdb.sql(f"SELECT text, embedding::FLOAT[1024] AS e FROM '{files}' ORDER BY text, id").fetchall()
    expected = TextEncoder.load("untrained", tokenizer_path=vocabulary).encode([text for text, _ in table])
    np.testing.assert_allclose(np.array([vector for _, vector in table]), expected, atol=2e-5)
    import polars as pl  # half a second, which each process of the tests would need

    frame = pl.read_parquet(files)
    assert frame.schema["embedding"] == pl.Array(pl.Float32, 1024)
    assert frame.height == shards * len(TEXTS)
    capsys.readouterr()
    flags = [f"--input={tmp_path / 'in/*'}", f"--output={tmp_path / 'out'}", f"--tokenizer_path={vocabulary}"]
    assert main(["embed", *flags, "--checkpoint=untrained", "--force"]) == 0
    assert "0 embedded" in capsys.readouterr().out
    assert main(["log", str(tmp_path / "out")]) == 0
    log = capsys.readouterr().out.splitlines()
    assert len(log) == 3
    assert log[-1].startswith("*")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "--output", "out"], "--input is missing: name the shards"),
        (["embed", "--input", "x"], "--output is missing: name the directory"),
        (
            ["embed", "--input", "a.txt", "--output", "a.txt/b"],
            "--output a.txt/b cannot be a directory, because a.txt is not one: name another path",
        ),
        (["embed", "--input", "none/*.txt", "--output", "out"], "none/*.txt"),
        (["embed", "--input", "a.txt", "--output", "out", "--no_such_flag"], "unknown flag --no_such_flag"),
        (["embed", "--input", "a.txt", "--output", "out", "--checkpoint", "gone.pt"], "gone.pt"),
        (["plan", "--input", "a.txt", "--output", "out", "--no_dedupe"], "there is nothing to plan"),
        (
            ["embed", "--input", "a.txt", "--output", "out", "--no_dedupe", "--batch_size", "7"],
            "--batch_size has no effect with --no_dedupe",
        ),
        (["gc", "out", "--keep", "0"], "--keep 0 would remove the current snapshot"),
    ],
)
def test_an_input_error_is_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """A missing or wrong input is named in one line before anything starts."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("dog\n")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "flag", ["--batch_size=0", "--max_rejected=many", "--max_shrink=2", "--prompt=sound", "--dtype=int8"]
)
def test_flags_out_of_range(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the flag."""
    assert main(["embed", "--input", "a.txt", "--output", "out", flag]) == 2
    assert flag.split("=", maxsplit=1)[0] in capsys.readouterr().err


def test_help_is_quick_and_imports_neither_beam_nor_torch() -> None:
    """The modules that take seconds to import are not imported."""
    code = (
        "import sys\nfrom audioclip_beam.pipeline.cli import main\n"
        "try: main(['embed', '--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('apache_beam', 'torch', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    assert "--model_path" in done.stdout


def test_commands_on_an_empty_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """log, current and rollback name the directory without a snapshot."""
    for command in ("log", "current", "rollback"):
        assert main([command, str(tmp_path)]) == 1
        assert "has no current snapshot" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["embed", "plan"])
@pytest.mark.parametrize(
    ("flags", "fetched"),
    [
        (["--checkpoint", "full"], [".cache/AudioCLIP-Full-Training.pt", ".cache/bpe_simple_vocab_16e6.txt.gz"]),
        (["--checkpoint", "partial"], [".cache/AudioCLIP-Partial-Training.pt", ".cache/bpe_simple_vocab_16e6.txt.gz"]),
        (["--model_path", "m/AudioCLIP-Partial-Training.pt", "--tokenizer_path", "m/v.gz"],
         ["m/AudioCLIP-Partial-Training.pt", "m/v.gz"]),
        (["--checkpoint", "mine.pt"], [".cache/bpe_simple_vocab_16e6.txt.gz"]),
    ],
)  # fmt: skip
def test_download_model_fetches_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], fetched: list[str], command: str
) -> None:
    """--download_model fetches the file that a word or a path names, to that path; for another file the vocabulary only."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("dog\n")
    paths: list[str] = []
    monkeypatch.setattr("audioclip_beam.model.fetch.fetch_file", lambda file, path, *_: paths.append(str(path)))
    assert main([command, "--input", "a.txt", "--output", "out", *flags, "--download_model"]) == 2
    assert paths == fetched


@pytest.mark.parametrize("name", ["out", "bob's", "a [b]", "a*", "what?", "$HOME", "`ls`", 'a "b"', "a{b,c}", "ä; #&"])
def test_the_query_that_is_printed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A shell and DuckDB read from the line the rows of this output, whatever its name."""
    monkeypatch.chdir(tmp_path)
    rows = np.eye(4, dtype=np.float32)[:1]
    write_snapshot(Path("aa"), [batch_of(["another"], ["dog"], rows)], 4)  # which a glob would match
    manifest = write_snapshot(Path(name), [batch_of(["this"], ["dog"], rows)], 4)
    (line,) = re.findall("^query +(.*)$", run_summary(name, manifest), re.MULTILINE)
    shell = ["bash", "-c", f'duckdb() {{ printf %s "$2"; }}; {line}']
    query = subprocess.run(shell, capture_output=True, text=True, check=True).stdout
    assert duckdb.sql(query).fetchall() == [("this", [1, 0, 0, 0])]


def test_no_query_is_printed_that_would_fail(tmp_path: Path) -> None:
    """DuckDB has no way to write a backslash in a path, and a shell none for an exclamation mark in double quotes."""
    manifest = write_snapshot(tmp_path / "out", [batch_of(["a"], ["dog"], np.eye(4, dtype=np.float32)[:1])], 4)
    for name in ("a\\b", "wow!", "~out", "line\nend", "\udce9"):
        assert "duckdb" not in run_summary(name, manifest)


IN = "embed --input a.txt --output out"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current directory, with two shards and three snapshots."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("dog\n")
    (tmp_path / "b.txt").write_text("cat\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "missing: COMMAND"),
        ("embd --input a.txt", "unknown command 'embd'; did you mean embed?"),
        ("--device cpu embed --input a.txt", "--device is given before the command"),
        (f"{IN} b.txt", "unexpected argument 'b.txt'"),
        (f"{IN} --normalize false", "--normalize takes no value, but 'false' is given"),
        (f"{IN} --normalize=false", "--normalize takes no value, but 'false' is given"),
        (f"{IN} --dtype float16 --dtype float32", "--dtype is given twice: 'float16', 'float32'"),
        (f"{IN} --model_path x.pt --checkpoint y.pt", "is given twice: 'x.pt', 'y.pt'"),
        (f"{IN} --output other", "--output is given twice"),
        (f"{IN} --dry-run", "embed has no flag --dry-run: `audioclip plan` with the same flags is the dry run"),
        (f"{IN} --dry_run", "`audioclip plan` with the same flags is the dry run"),
        (
            f"{IN} --input_format jsn",
            "'jsn' is not one of txt, jsonl, csv, tsv, parquet, media, tar; did you mean jsonl?",
        ),
        (f"{IN} --checkpoint ful", "'ful' is neither a file nor one of full, partial, untrained; did you mean full?"),
        (f"{IN} --device gpu", "--device: 'gpu' is not auto, cpu, cuda or cuda:N; did you mean cuda?"),
        (f"{IN} --batch_size", "--batch_size needs one value"),
        (f"{IN} --input", "--input needs at least one value"),
        (f"{IN} -n 3", "unknown flag -n: flags begin with two hyphens"),
        ("log out extra", "unexpected argument 'extra'"),
        ("gc out --keep 3 other", "unexpected argument 'other'"),
        ("gc out", "missing: --keep"),
        ("log", "missing: OUT"),
        ("fetch ful", "'ful' is not one of full, partial, vocabulary; did you mean full?"),
        ("fetch full --runner DirectRunner", "fetch"),
        ("search out dog --by cosin", "did you mean cosine?"),
        ("embed --input '' --output out", "--input: the value is empty: check the variable that it comes from"),
        ("embed --input a.txt --output ''", "--output: the value is empty"),
        (f"{IN} --checkpoint=", "--checkpoint/--model_path: the value is empty"),
        (f"{IN} --tokenizer_path ''", "--tokenizer_path: the value is empty"),
        ("changes out --from ''", "--from: the value is empty"),
        ("changes out --to ''", "--to: the value is empty"),
        ("changes out --output ''", "--output: the value is empty"),
        ("validate out --snapshot ''", "--snapshot: the value is empty"),
        ("search out dog --checkpoint ''", "--checkpoint: the value is empty"),
        ("log ''", "OUT: the value is empty"),
        ("rollback out ''", "snapshot: the value is empty"),
        ("embed --input a\udce9.txt --output out", "--input: 'a\\udce9.txt' is not UTF-8 (character 1): write * or ?"),
        ("embed --input a.txt --output \udce9", "--output: '\\udce9' is not UTF-8 (character 0): check the terminal"),
        (f"{IN} --checkpoint \udce9.pt", "--checkpoint/--model_path: '\\udce9.pt' is not UTF-8"),
        (f"{IN} --tokenizer_path \udce9.gz", "--tokenizer_path: '\\udce9.gz' is not UTF-8"),
        (f"{IN} --prompt 'caf\udce9 {{}}'", "--prompt: 'caf\\udce9 {}' is not UTF-8 (character 3)"),
        (f"{IN} --prompt 'a {{:.4}}'", "--prompt: 'a {:.4}' is not a prompt: it must contain {} once"),
        (f"{IN} --prompt '{{0}} {{0}}'", "--prompt: '{0} {0}' is not a prompt: it must contain {} once"),
    ],
)
def test_usage_error(folder: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A token that no argument takes is named in at most three lines, which point to the help; nothing is written."""
    assert main(shlex.split(line)) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert out == ""
    assert len(error.splitlines()) <= 3
    command = line.split(" ", maxsplit=1)[0] if line.split(" ", maxsplit=1)[0] in COMMANDS else ""
    assert error.splitlines()[-1] == f"See `{' '.join(filter(None, ('audioclip', command)))} --help`."
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{IN} --ouput x", "unknown flag --ouput; did you mean --output?"),
        (f"{IN} --direct-num-workers 2", "unknown flag --direct-num-workers: Beam's flag is --direct_num_workers"),
        (f"{IN} --direct_num_wokers 2", "unknown flag --direct_num_wokers; did you mean --direct_num_workers?"),
        (f"{IN} --direct_num_workers 1 --direct_num_workers 2", "--direct_num_workers is given twice: 1, 2"),
        ("search out dog --device cuda:7", "search has no flag --device: it is a flag of embed, plan"),
        ("log out --dry_run", "log has no flag --dry_run: it is a flag of gc"),
        ("log out --runner Foo", "log has no flag --runner: Beam's flags are for embed and plan"),
        ("gc out --keep 1 --s3-endpoint-url=x", "Beam's flag is --s3_endpoint_url"),
        ("gc out --keep 1 --dry_runn", "unknown flag --dry_runn; did you mean --dry_run?"),
        ("current out --temp_location=x", "current has no flag --temp_location"),
    ],
)
def test_flags_of_beam_and_of_other_commands(
    folder: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag that the command does not take is named, with the nearest one or the commands that take it."""
    assert main(shlex.split(line)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) <= 3
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "line",
    [
        "embed --input a.txt b.txt --output out --batch-size 7 --max-rejected=1% --keep-fields a,b --no-text",
        "embed --input a.txt --input b.txt --output out --batch_size=7 --max_rejected 1% --keep_fields=a,b --no_text",
        "plan --output=out --batch-size=7 --max_rejected=1% --keep-fields a,b --no-text --input a.txt b.txt",
    ],
)
def test_hyphens_and_underscores(line: str) -> None:
    """A flag of this project is the same with hyphens and with underscores, and --input takes several shards."""
    arguments = parse(shlex.split(line))
    options = EmbedOptions(arguments.argv)
    reject_unknown_flags(options)
    assert options.input == ["a.txt", "b.txt"]
    assert (options.batch_size, options.max_rejected, options.keep_fields) == (7, "1%", ["a", "b"])
    assert options.no_text is True


def test_values_with_hyphens_stay() -> None:
    """Only names of flags change: values and what follows "--" stay as they are."""
    assert parse(["embed", "--prompt=--no-text {}"]).prompt == "--no-text {}"
    assert parse(["search", "out", "--top", "3", "--", "--dry-run"]).queries == ["--dry-run"]
    assert parse(["search", "out", "--json", "dog barking", "-1"]).queries == ["dog barking", "-1"]


def test_beam_flags_reach_beam() -> None:
    """Any flag that Beam knows passes with embed and plan; flags for object stores pass with the other commands."""
    line = "embed --input a --output b --runner=DataflowRunner --template_location gs://b/t --experiments=a --experiments=b"
    options = EmbedOptions(parse([*line.split(), "--dry_run=True"]).argv).get_all_options()
    assert options["runner"] == "DataflowRunner"
    assert options["template_location"] == "gs://b/t"
    assert options["experiments"] == ["a", "b"]
    assert options["dry_run"] == "True"
    assert parse(["log", "--s3_endpoint_url", "http://h:1", "OUT", "--project", "p"]).beam == {
        "s3_endpoint_url": "http://h:1",
        "project": "p",
    }
    assert parse(["log", "--s3_endpoint_url", "http://h:1", "OUT"]).output == "OUT"


def test_library_options_name_unknown_flags() -> None:
    """Options that a program builds are checked as strictly, and know hyphens too."""
    assert EmbedOptions(["--batch-size", "3"]).batch_size == 3
    options = EmbedOptions(input=[Path("a.txt")], output=Path("out"), checkpoint=Path("full.pt"))
    assert (*options.check(), options.checkpoint) == (["a.txt"], "out", "full.pt")
    assert EmbedOptions(input="a.txt").input == EmbedOptions(input=Path("a.txt")).input == ["a.txt"]
    with pytest.raises(OptionsError, match="unknown flag --ouput; did you mean --output"):
        reject_unknown_flags(EmbedOptions(["--input", "a", "--ouput", "b"]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input", ["a.txt", "\udce9"]),
        ("output", "\udce9"),
        ("checkpoint", "\udce9"),
        ("tokenizer_path", "\udce9"),
        ("prompt", "\udce9 {}"),
    ],
)
def test_library_options_are_utf8(name: str, value: object) -> None:
    """The error names the option before anything is read."""
    options = {"input": ["a.txt"], "output": "out", name: value}
    with pytest.raises(OptionsError, match=rf"^--{name}: '\\udce9.* is not UTF-8 \(character 0\)"):
        EmbedOptions(**options).check()


def test_gc_dry_run_with_a_hyphen_removes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both spellings of the flag print what would be removed."""
    rows = batch_of(["a"], ["one"], np.eye(4, dtype=np.float32)[:1])
    write_snapshot(folder / "out", [rows], 4)
    dead_run = folder / "out/snapshots/20250101T000000Z-12345678"
    dead_run.mkdir()
    (dead_run / "part-0.parquet").touch()
    before = sorted((folder / "out").rglob("*"))
    printed = []
    for flag in ("--dry-run", "--dry_run"):
        assert main(["gc", "out", "--keep", "1", flag]) == 0
        printed.append(capsys.readouterr().out)
    assert printed == [f"would remove {dead_run.name}\n"] * 2
    assert set(before) <= set((folder / "out").rglob("*"))


@pytest.mark.slow
def test_in_a_real_process(folder: Path) -> None:
    """The program answers at once, with exit status 2 and without a traceback."""
    result = run_program("gc", "out", "--keep", "1", "--dry-runn", "x", cwd=folder)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "audioclip: error: unknown flag --dry-runn; did you mean --dry_run?",
        "See `audioclip gc --help`.",
    ]


@pytest.mark.slow
def test_an_unquoted_glob_in_a_shell(folder: Path, small_head: str, vocabulary: Path) -> None:
    """Every file that the shell puts behind --input is embedded."""
    flags = f"--input *.txt --output out --model-path {small_head} --tokenizer-path {vocabulary}"
    result = run_program("embed", redirect=flags, cwd=folder, program=[preloaded_programs() / "audioclip"])
    assert result.returncode == 0, result.stderr
    assert "rows      2 read = 2 embedded" in result.stdout


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        ("--device cuda:99", 1, "--device cuda:99: torch "),
        ("--device cpu --dtype float16", 2, "--dtype float16: it needs a CUDA device"),
    ],
)
def test_device_is_checked_first(
    folder: Path, flags: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU that this machine lacks is named before a local run reads its model."""
    assert main([*IN.split(), "--checkpoint=gone.pt", *flags.split()]) == status
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--head audio --window 2.50 --hop 20", "--hop 20: choose 0.001 to 2.5 seconds, the window\n"),
        ("--head audio --window whole --hop 2", "--hop 2: whole recordings have no hop; give a window as well\n"),
        (
            "--head audio --variant jina --window 4",
            "--window 4: the variant jina embeds whole recordings; leave the window",
        ),
        ("--head audio --window nan", "--window: 'nan' is neither whole nor 0.001 to 300 seconds\n"),
        ("--head audio --hop -1", "--hop: '-1' is not 0.001 to 300 seconds\n"),
    ],
)
def test_settings_have_the_names_of_their_flags(
    folder: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors of settings that are found later than flags are parsed, too, as in Python by the parameter's name."""
    (folder / "a.wav").touch()
    for command in ("embed", "plan"):
        assert main([command, "--input=a.wav", "--output=out", "--checkpoint=untrained", *flags.split()]) == 2
        assert f"audioclip: error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--runner Flnk", "unknown --runner Flnk; did you mean Flink?"),
        ("--runner Xyz", "unknown --runner Xyz; use DirectRunner, FlinkRunner, SparkRunner, PrismRunner, "),
        *(
            (
                f"--runner {name}",
                f"--runner {name} drops what a step emits in finish_bundle, and with it rows: use DirectRunner",
            )
            for name in ("DaskRunner", "dask", "apache_beam.runners.dask.dask_runner.DaskRunner")
        ),
        ("--runner PortableRunner", "--runner PortableRunner needs --job_endpoint"),
        ("--runner FlinkRunner --job_server_java_launcher no-java", "the job server needs Java, and 'no-java' is not"),
        ("--runner PrismRunner --prism_location gone", "--prism_location gone does not exist"),
        ("--dry_run=True", "--dry_run is for Dataflow"),
        ("--runner DataflowRunner --template_location gs://b/t", "--template_location makes a classic template"),
    ],
)
def test_runner_is_checked_first(folder: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A runner that is unknown or lacks something is named before the model is read."""
    for command in ("embed", "plan"):
        assert main([command, *IN.split()[1:], "--checkpoint=gone.pt", *flags.split()]) == 2
        assert message in capsys.readouterr().err
    assert not (folder / "out").exists()
