"""Errors of a run from Python: what fails in this process keeps its class; what fails in the job is a RuntimeError."""

from __future__ import annotations

import pickle
from contextlib import closing
from pathlib import Path

import apache_beam as beam
import pytest

from audioclip_beam.model.head import UnavailableSettingError
from audioclip_beam.model.messages import WrongSettingError
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.errors import SnapshotError
from audioclip_beam.pipeline.options import EmbedOptions, OptionsError
from audioclip_beam.pipeline.run.runner import choose_runner, error_message, run
from tests.support.corpus import embed, write_jsonl
from tests.support.stub import StubHead


@pytest.mark.parametrize(
    "error", [SnapshotError("out is full"), OptionsError("no"), OSError(28, "full"), KeyError("x")]
)
def test_errors_of_the_launcher_keep_their_class(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python program can tell them apart."""
    options = EmbedOptions(input=write_jsonl(tmp_path / "a.jsonl", [{"text": "dog"}]), output=tmp_path / "out")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("audioclip_beam.pipeline.embed.start_run", fail)
    with closing(EmbedCorpus(options, StubHead())) as corpus, pytest.raises(type(error)) as caught:
        run(corpus, options)
    assert caught.value is error


def test_errors_of_the_job_are_runtime_errors(tmp_path: Path) -> None:
    """With the message that explains them."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": "dog"}, {"text": None}])
    with pytest.raises(RuntimeError, match=r"^1 of 2 rows are rejected, more than --max_rejected 0") as caught:
        embed(tmp_path / "a.jsonl", tmp_path / "out", max_rejected="0")
    assert type(caught.value) is RuntimeError


def test_an_error_of_a_setting_is_whole_in_a_job() -> None:
    """Beam writes the step behind the message of a worker's error, or else makes another error of it."""
    pipeline = beam.Pipeline(runner=choose_runner(EmbedOptions([])))
    _ = pipeline | beam.Create([1]) | "Fail" >> beam.Map(_fail)
    with pytest.raises(RuntimeError) as caught:
        pipeline.run()
    assert error_message(caught.value) == "device='cuda': torch sees no GPU"
    error = pickle.loads(pickle.dumps(WrongSettingError("hop", 20.0, "choose less")))
    assert (str(error), error.as_flag()) == ("hop=20.0: choose less", "--hop 20: choose less")


def _fail(_: int) -> None:
    raise UnavailableSettingError("device", "cuda", "torch sees no GPU")


def test_errors_of_the_operating_system_have_no_number() -> None:
    """Of a job's traceback the words remain that name the file."""
    trace = (
        "Traceback (most recent call last):\n  x\nPermissionError: [Errno 13] a.wav cannot be read: Permission denied\n"
    )
    assert error_message(RuntimeError(trace)) == "a.wav cannot be read: Permission denied"
    assert error_message(RuntimeError(trace.replace("[Errno 13] ", ""))).startswith("PermissionError: a.wav")
