"""docs/changes.md: each recipe brings a database in step with the corpus, deletes included, twice without harm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from audioclip_beam.pipeline.changes import find_changes
from tests.support.corpus import StubHead, embed, read, write_jsonl
from tests.support.pages import blocks, commands, environment_of_the_tests, read_page, sections
from tests.support.postgres import postgres_server
from tests.support.sound_files import sound_file
from tests.support.stub_media import StubSounds, embed_media

PAGE = read_page("docs/changes.md")
SECTIONS = sections(PAGE)
MEDIA = SECTIONS["Sounds and pictures"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with two snapshots in out/corpus, and their changes in first/ and changes/."""
    folder = tmp_path_factory.mktemp("changes")
    output = folder / "out/corpus"
    rows = [{"id": f"it's {n}", "text": f"text number {n}"} for n in range(40)]
    embed(write_jsonl(folder / "a.jsonl", rows), output, StubHead(dim=1024), id_field="id", unique_ids=True)
    find_changes(str(output), target=str(folder / "first"))
    rows[1]["text"] = "another text"
    rows[2]["id"] = "new"
    write_jsonl(folder / "a.jsonl", rows[:35])
    embed(folder / "a.jsonl", output, StubHead(dim=1024), id_field="id", unique_ids=True)
    run(commands(PAGE.partition("\n## ")[0])[0], folder)
    return folder


def run(script: str, folder: Path, program: str = "bash", **variables: str) -> str:
    """Run a script as one program; return what it prints."""
    arguments = ["bash", "-euo", "pipefail", "-c", script] if program == "bash" else ["python", "-c", script]
    process = subprocess.run(
        arguments,
        cwd=folder,
        env={**environment_of_the_tests(), **variables},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


@pytest.fixture(scope="module")
def postgres(folder: Path) -> Iterator[dict[str, str]]:
    """Return the environment variables of a running PostgreSQL."""
    with postgres_server(folder) as variables:
        yield {**variables, "PATH": f"{variables['PATH']}:{environment_of_the_tests()['PATH']}"}


def rows_in_duckdb(folder: Path) -> dict[str, str]:
    with duckdb.connect(str(folder / "captions.duckdb")) as database:
        return dict(database.sql("SELECT id, text FROM captions").fetchall())


def rows_in_qdrant(folder: Path) -> dict[str, str]:
    from qdrant_client import QdrantClient  # it takes a second, which other tests need not wait

    client = QdrantClient(path=str(folder / "captions.qdrant"))
    payloads = [point.payload for point in client.scroll("captions", limit=100)[0]]
    client.close()
    return {payload["id"]: payload["text"] for payload in payloads if payload}


def rows_in_lancedb(folder: Path) -> dict[str, str]:
    import lancedb  # it takes seconds, which other tests need not wait

    table = lancedb.connect(folder / "captions.lancedb").open_table("captions").to_arrow()
    return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "rows_in"), [("DuckDB", rows_in_duckdb), ("Qdrant", rows_in_qdrant), ("LanceDB", rows_in_lancedb)]
)
def test_recipe_keeps_a_database_in_step(
    section: str, rows_in: Callable[[Path], dict[str, str]], folder: Path, tmp_path: Path
) -> None:
    """Apply all rows of the first snapshot, then what changed, twice: the database has the rows of the second one."""
    (code,) = blocks(SECTIONS[section], "python")
    counts = [run(code, tmp_path, "python", CHANGES=str(folder / name)) for name in ("first", "changes", "changes")]
    table = read(folder / "out/corpus")
    expected = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    assert rows_in(tmp_path) == expected
    assert [str(n) in count for n, count in zip((40, 35, 35), counts, strict=True)] == [True] * 3


@pytest.mark.slow
def test_pgvector_recipe(folder: Path, postgres: dict[str, str]) -> None:
    """The same for PostgreSQL."""
    (script,) = blocks(SECTIONS["PostgreSQL with pgvector"], "sh")
    counts = [run(script, folder, **postgres, CHANGES=str(folder / name)) for name in ("first", "changes", "changes")]
    assert [int(count.splitlines()[-1]) for count in counts] == [40, 35, 35]
    rows = run("psql -At -c 'SELECT json_object_agg(id, text) FROM captions'", folder, **postgres)
    table = read(folder / "out/corpus")
    assert json.loads(rows) == dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory as that of `folder`, of sounds: one of two windows changes, one is removed, and one is new.

    Its name has the beginning of a name of files in it.
    """
    folder = tmp_path_factory.mktemp("added-sounds")
    output, clips = folder / "out/sounds", folder / "clips"
    clips.mkdir()
    for number, samples in enumerate((8000, 16000, 32000)):
        (clips / f"it's {number}.wav").write_bytes(sound_file(samples=samples, rate=8000))
    embed_media(clips / "*.wav", output, StubSounds(1024), window="2")
    find_changes(str(output), target=str(folder / "first"))
    (clips / "it's 0.wav").unlink()
    (clips / "it's 2.wav").write_bytes(sound_file(samples=32000, rate=8000, channels=2))
    (clips / "new.wav").write_bytes(sound_file(samples=9000, rate=8000))
    embed_media(clips / "*.wav", output, StubSounds(1024), window="2")
    find_changes(str(output), target=str(folder / "changes"))
    return folder


def places(rows: list[dict[str, Any]]) -> dict[str, tuple[object, ...]]:
    """Return what finds the content of each row again, by id."""
    return {row["id"]: (row["file"]["uri"], row["file"]["checksum"], row["start"], row["end"]) for row in rows}


def sounds_in_duckdb(folder: Path) -> list[dict[str, Any]]:
    with duckdb.connect(str(folder / "sounds.duckdb")) as database:
        return list(database.sql("SELECT * FROM sounds").to_arrow_table().to_pylist())


def sounds_in_qdrant(folder: Path) -> list[dict[str, Any]]:
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(folder / "captions.qdrant"))
    payloads = [point.payload for point in client.scroll("captions", limit=100)[0]]
    client.close()
    return [payload for payload in payloads if payload]


def sounds_in_lancedb(folder: Path) -> list[dict[str, Any]]:
    import lancedb  # it takes seconds, which other tests need not wait

    return list(lancedb.connect(folder / "captions.lancedb").open_table("captions").to_arrow().to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows_in"), [("DuckDB", sounds_in_duckdb), ("Qdrant", sounds_in_qdrant), ("LanceDB", sounds_in_lancedb)]
)
def test_recipes_for_sounds(
    name: str, rows_in: Callable[[Path], list[dict[str, Any]]], sounds: Path, tmp_path: Path
) -> None:
    """The database has the files and windows of the second snapshot."""
    code = blocks(MEDIA if name == "DuckDB" else SECTIONS[name], "python")[0]
    if name == "Qdrant":
        (columns,) = blocks(MEDIA, "text")
        assert code.count('columns = ["id", "text"]\n') == 1
        code = code.replace('columns = ["id", "text"]\n', columns)
    counts = [run(code, tmp_path, "python", CHANGES=str(sounds / kind)) for kind in ("first", "changes")]
    assert ["4" in count for count in counts] == [True, True]
    assert places(rows_in(tmp_path)) == places(read(sounds / "out/sounds").to_pylist())


@pytest.mark.slow
def test_pgvector_recipe_for_sounds(sounds: Path, postgres: dict[str, str]) -> None:
    """The same for PostgreSQL."""
    (script,) = blocks(MEDIA, "sh")
    counts = [run(script, sounds, **postgres, CHANGES=str(sounds / kind)) for kind in ("first", "changes")]
    assert [int(count.splitlines()[-1]) for count in counts] == [4, 4]
    query = 'SELECT json_agg(row_to_json(r)) FROM (SELECT id, file, start, "end" FROM sounds) r'
    rows = json.loads(run(f"psql -At -c '{query}'", sounds, **postgres))
    assert places(rows) == places(read(sounds / "out/sounds").to_pylist())


def test_every_recipe_is_run() -> None:
    """Check that no section was left out."""
    assert list(SECTIONS) == ["DuckDB", "Qdrant", "LanceDB", "PostgreSQL with pgvector", "Sounds and pictures"]
