"""Runs for processes of their own that are killed: with a slow stub model that logs its texts, or with a crash."""

import os
import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from audioclip_beam.model.head import Encoding
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.run.runner import run
from tests.support.faults import Fault, Faults
from tests.support.stub import StubEncoder, StubHead


class LoggingEncoder(StubEncoder):
    """StubEncoder that appends each text to a file before it embeds it."""

    log: Path

    def encode_rows(self, texts: Sequence[str]) -> Encoding:
        with self.log.open("a") as handle:
            handle.writelines(f"{text}\n" for text in texts)
        return super().encode_rows(texts)


class LoggingHead(StubHead):
    """StubHead over a LoggingEncoder."""

    def __init__(self, log: str) -> None:
        super().__init__(delay=0.001)
        self.log = log

    def encoder(self) -> LoggingEncoder:
        encoder = LoggingEncoder(self.info(), self.delay)
        encoder.log = Path(self.log)
        return encoder


def slow_run(shards: str, output: str, log: str, *flags: str) -> None:
    """Embed `shards` into `output` at 1 ms per text, in files of 100 rows; the texts go to `log`."""
    options = EmbedOptions(list(flags), input=[shards], output=output, id_field="id", batch_size=100, max_file_rows=100)
    run(EmbedCorpus(options, LoggingHead(log)), options)


def killed_at(root: str, nth: int, *, late: bool, effect: str = "any") -> AbstractContextManager[None]:
    """Return a block in which this process is killed at the `nth` effect on a file below `root`, or after it with `late`."""
    end = partial(os.kill, os.getpid(), signal.SIGKILL)
    return Faults(Path(root)).armed(Fault(effect, nth, late=late, meanwhile=end))


def crashing_run(root: str, output: str, nth: int, late: bool) -> None:
    """Embed the shards in `root`/in into `root`/`output`; the process is killed at the `nth` effect on a file there.

    `late` means after that effect, and not before it.
    """
    options = EmbedOptions(
        [], input=[f"{root}/in/*.jsonl"], output=f"{root}/{output}", id_field="id", max_file_rows=5, unique_ids=True
    )
    with killed_at(root, nth, late=late):
        run(EmbedCorpus(options, StubHead()), options)
