"""The one TextEncoder of a process, loaded and, on a CPU, run in a thread that does nothing else.

OpenMP keeps a pool of threads for every thread that computes. Two pools in one process stand in each other's way: a model
that is loaded in one thread and run in another lost 5 to 20 % of its speed (benchmarks/README.md).
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import fspath
from typing import TypeAlias, TypeVar

from ...model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from ...model.encoder import VOCABULARY, Encoding, TextEncoder
from ...model.settings import Text, check_options, fingerprint, fingerprint_parts
from ...model.text_head import check_vocabulary
from ...model.text_head import logit_scale as scale_of
from ...model.tokenizer import ClipTokenizer, TokenizerError
from ..io.filesystem import is_local
from ..io.local_cache import Content, content_of, local_copy
from ..io.worker_thread import WorkerThread
from ..metrics import count_model_texts

_T = TypeVar("_T")


@dataclass(frozen=True)
class EncoderSettings:
    """What TextEncoder.load takes: picklable, and the key under which a process keeps its encoder."""

    path: str
    device: str = "auto"
    dtype: str = "float32"
    tokenizer_path: str | None = None
    prompt: str = "{}"
    on_long: str = "truncate"
    normalize: bool = False


@dataclass(frozen=True)
class ModelInfo:
    """What a job says of its model: all that a launcher must know without building the tower."""

    name: str
    sha256: str
    untrained: bool
    dim: int
    fingerprint: str
    fingerprint_parts: dict[str, str]

    @property
    def weights(self) -> str:
        """What a reader of the output must know: "trained" or "untrained"."""
        return "untrained" if self.untrained else "trained"


# What checkpoint and vocabulary on a store held when the job was started.
Contents: TypeAlias = "tuple[Content | None, Content | None]"

# Read and changed in the model's thread alone, which is what makes them safe.
_read: dict[tuple[str, str | None], tuple[Checkpoint, ClipTokenizer, Contents]] = {}


_loaded: dict[EncoderSettings, TextEncoder] = {}

_threads: list[WorkerThread] = []

_lock = threading.Lock()

_exiting = threading.Event()


def load_encoder(settings: EncoderSettings, contents: Contents = (None, None)) -> TextEncoder:
    """This process's encoder for `settings`; an encoder of other settings gives way to it."""
    return _in_its_thread(lambda: _load(settings, contents))


def describe_model(settings: EncoderSettings) -> tuple[ModelInfo, Contents, int]:
    """What an encoder of `settings` would be, what its files hold, and how many tokens it would read of a text.

    Raises ValueError or OSError, with a text for people, where they cannot be used.
    """
    return _in_its_thread(lambda: _describe_model(settings))


def logit_scale(settings: EncoderSettings, other: str) -> float:
    """What AudioCLIP multiplies cosines of texts with `other`, "audio" or "image", by; ValueError where it is not there."""
    return _in_its_thread(lambda: scale_of(_parts(settings)[0].state, other))


def vocabulary_path(settings: EncoderSettings) -> str:
    """Where the vocabulary lies."""
    return fspath(settings.tokenizer_path or VOCABULARY)


class _Encoder(TextEncoder):
    """A TextEncoder that computes in the model's thread, whichever thread asks."""

    def encode_rows(self, texts: Sequence[Text]) -> Encoding:
        if self.device.type != "cpu":  # there is no pool, and callers' tokenizing goes on beside the device's work
            return super().encode_rows(texts)
        return _in_its_thread(lambda: super(_Encoder, self).encode_rows(texts))


def _in_its_thread(call: Callable[[], _T]) -> _T:
    """What `call` gives or raises in the model's thread: a new one in a process that was forked, where none lives on."""
    with _lock:
        if not (_threads and _threads[-1].thread.is_alive()):
            _threads.append(WorkerThread("model"))
            atexit.register(_end, _threads[-1])
    return _threads[-1].submit(call).result()


def _end(thread: WorkerThread) -> None:
    """Wait until torch has let go of a thread of ours: a process that exits while it computes is aborted."""
    _exiting.set()
    thread.end()
    thread.thread.join()


def _progress(texts: int) -> None:
    if _exiting.is_set():  # Ctrl-C: whoever waits for this batch is gone, and a whole one takes minutes
        raise SystemExit
    count_model_texts(texts)


def _load(settings: EncoderSettings, contents: Contents) -> TextEncoder:
    if settings not in _loaded:
        _loaded.clear()
        checkpoint, tokenizer, _ = _parts(settings, contents)
        _read.clear()
        _loaded[settings] = _Encoder(
            checkpoint,
            tokenizer,
            device=settings.device,
            dtype=settings.dtype,
            prompt=settings.prompt,
            on_long=settings.on_long,
            normalize=settings.normalize,
        )
        _loaded[settings].on_progress = _progress
    return _loaded[settings]


def _describe_model(settings: EncoderSettings) -> tuple[ModelInfo, Contents, int]:
    check_options(prompt=settings.prompt, on_long=settings.on_long, dtype=settings.dtype)
    checkpoint, tokenizer, contents = _parts(settings)
    check_vocabulary(checkpoint.name, checkpoint.state)
    parts = fingerprint_parts(
        checkpoint,
        tokenizer.sha256,
        prompt=settings.prompt,
        on_long=settings.on_long,
        normalize=settings.normalize,
        dtype=settings.dtype,
    )
    dim = checkpoint.state["text_projection"].shape[1]
    model = ModelInfo(checkpoint.name, checkpoint.sha256, checkpoint.untrained, dim, fingerprint(parts), parts)
    return model, contents, checkpoint.state["positional_embedding"].shape[0]


def _parts(settings: EncoderSettings, contents: Contents = (None, None)) -> tuple[Checkpoint, ClipTokenizer, Contents]:
    """What an encoder is made of, kept from its description until it is built: a local run does both."""
    key = settings.path, settings.tokenizer_path
    if key not in _read:
        _read.clear()
        given = fspath(settings.path), vocabulary_path(settings)
        checkpoint, vocabulary = (local_copy(file, content) for file, content in zip(given, contents, strict=True))
        held = (
            None if is_local(given[0]) else content_of(checkpoint),
            None if is_local(given[1]) else content_of(vocabulary),
        )
        try:
            _read[key] = load_checkpoint(checkpoint), ClipTokenizer(vocabulary), held
        except (CheckpointError, TokenizerError) as error:  # of copies that nobody asked for by these names
            text = str(error).replace(checkpoint, given[0]).replace(vocabulary, given[1])
            raise type(error)(text) from None
    return _read[key]
