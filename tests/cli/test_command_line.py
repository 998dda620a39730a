"""The command line as users and schedulers run it: real shards, a real encoder, separate processes."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import re
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
from audioclip_beam.pipeline.cli.embed_command import run_summary
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
    monkeypatch.setattr("audioclip_beam.model.fetch._fetch_one", lambda file, path, *_: paths.append(str(path)))
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
