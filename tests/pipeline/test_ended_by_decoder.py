"""A decoder that ends its process: the run fails, names the file, and loses no other."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from audioclip_beam.model.head import EncoderSettings, Encoding
from audioclip_beam.pipeline.remote.decoder_watch import REMEDY, decoding
from audioclip_beam.pipeline.remote.worker_reports import RunReports, read_reports, remove_reports
from tests.support.engines import wait_until
from tests.support.picture_files import encoded, picture
from tests.support.processes import start_process
from tests.support.sound_files import sound_file
from tests.support.stub_media import StubMediaEncoder, StubPictures, StubSounds, embed_media

DEADLY = b"deadly"


def _die(data: bytes) -> None:
    if DEADLY in data:
        os._exit(7)


class HeaderHead(StubSounds):
    """A head whose decoder dies when it looks at a file."""

    def examine(self, opened: BinaryIO, size: int, settings: EncoderSettings) -> Any:
        _die(opened.read())
        opened.seek(0)
        return super().examine(opened, size, settings)


class SamplesHead(StubSounds):
    """A head whose decoder dies when it decodes a file."""

    def decode(self, opened: BinaryIO, parts: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        data = opened.read()
        _die(data)
        yield from super().decode(io.BytesIO(data), parts)


class DeadlyEncoder(StubMediaEncoder):
    """An encoder that dies when it decodes a picture, as the real one does, within `decoding`."""

    def encode_rows(self, contents: Sequence[Any]) -> Encoding:
        for content in contents:
            with self.decoding(content):
                _die(content)
        return super().encode_rows(contents)


class PixelsHead(StubPictures):
    """A head whose encoder dies."""

    def load(self, settings: Any, files: Any, device: str) -> Any:
        return DeadlyEncoder(self.describe(settings, files))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five sounds and five pictures, of each of which one ends its decoder."""
    (tmp_path / "in").mkdir()
    for number in range(5):
        end = DEADLY if number == 3 else b""
        (tmp_path / f"in/{number}.wav").write_bytes(sound_file(samples=100 + number) + end)
        (tmp_path / f"in/{number}.jpg").write_bytes(encoded(picture(number), "JPEG") + end)
    return tmp_path


def run_in_process(pattern: str, output: str, head: Any) -> None:
    """Embed, in a process of its own."""
    embed_media(pattern, Path(output), head)


@pytest.mark.parametrize(("head", "name"), [(HeaderHead(), "3.wav"), (SamplesHead(), "3.wav"), (PixelsHead(), "3.jpg")])
def test_the_process_of_a_run_is_ended(head: Any, name: str, folder: Path) -> None:
    """A line on stderr names the file, and the next run without it succeeds."""
    pattern, path = f"{folder}/in/*{name[1:]}", folder / "in" / name
    process = start_process(run_in_process, pattern, str(folder / "out"), head, stderr=folder / "stderr")
    process.join(60)
    assert process.exitcode == 7
    path.unlink()
    manifest, _ = embed_media(pattern, folder / "out", head)
    assert manifest["totals"]["vectors"] == 4
    assert (
        f"audioclip: error: the process ended while it decoded {path}: leave it out" in (folder / "stderr").read_text()
    )


def decode_and_die(directory: str) -> None:
    """Be ended by the decoder of one file, while another one was decoded before."""
    reports = RunReports(directory)
    with decoding("good.jpg", reports):
        pass
    with decoding("bad\x1b.jpg", reports):
        os._exit(7)


def test_the_launcher_of_a_remote_job_learns_of_the_file(tmp_path: Path) -> None:
    """The run directory has what a worker of the job decoded."""
    start_process(decode_and_die, str(tmp_path)).join(30)
    wait_until(lambda: read_reports(str(tmp_path)).ends, "the report", 30)
    reports = read_reports(str(tmp_path))
    assert (reports.ends, reports.errors, reports.workers) == (
        [f"a worker ended while it decoded bad?.jpg: {REMEDY}"],
        [],
        0,
    )
    remove_reports(str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Beam's threads to that worker
def test_a_worker_process_is_ended(folder: Path) -> None:
    """The error of the run names the file."""
    options = {"direct_running_mode": "multi_processing", "direct_num_workers": 2}
    with pytest.raises(RuntimeError) as failure:
        embed_media(f"{folder}/in/*.jpg", folder / "out", PixelsHead(), **options)
    assert f"a worker process ended while it decoded {folder}/in/3.jpg: leave it out" in str(failure.value)
    assert "(exit status 7" in str(failure.value)
    assert not (folder / "out/current.json").exists()
