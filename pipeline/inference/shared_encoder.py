"""EncoderThread: the one TextEncoder of a process, loaded and, on a CPU, run in its own thread.

OpenMP keeps a pool of threads for every thread that computes, and two pools in one process slow each other down: a model
that was loaded in one thread and run in another lost 5 to 20 % of its speed (benchmarks/README.md).
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from os import fspath
from typing import NamedTuple, TypeVar

from ...model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from ...model.fingerprint import fingerprint
from ...model.settings import Text, check_options, fingerprint_parts
from ...model.text.encoder import Encoding, TextEncoder
from ...model.text.tokenizer import ClipTokenizer, TokenizerError
from ...model.text_head import check_vocabulary
from ...model.text_head import logit_scale as read_logit_scale
from ..io.local_cache import Content, content_of, local_copy
from ..io.paths import is_local
from ..io.versions import local_version
from ..io.worker_thread import WorkerThread
from ..metrics import count_model_texts
from .encoder_settings import EncoderSettings, ModelInfo
from .gpus import GpuPlace
from .model_threads import ModelThreads

_T = TypeVar("_T")


class Contents(NamedTuple):
    """Content of checkpoint and vocabulary when the job was started; None for a local file."""

    checkpoint: Content | None = None
    vocabulary: Content | None = None


class ModelDescription(NamedTuple):
    """An encoder that was not built: its info, the content of its files, and the context length in tokens."""

    info: ModelInfo
    contents: Contents
    context_length: int


class _Source(NamedTuple):
    """Checkpoint and vocabulary as they were read: the versions of local files, and the contents of other ones."""

    versions: tuple[str, ...]
    contents: Contents

    def may_be(self, contents: Contents) -> bool:
        """Return whether these are the files that `contents` describes."""
        return all(content in (None, mine) for content, mine in zip(contents, self.contents, strict=True))


class _ModelFiles(NamedTuple):
    """Checkpoint and vocabulary, read."""

    checkpoint: Checkpoint
    tokenizer: ClipTokenizer
    source: _Source


class _Loaded(NamedTuple):
    """An encoder, and what it was made of."""

    encoder: TextEncoder
    settings: EncoderSettings
    source: _Source


class EncoderThread:
    """The encoder of this process and the thread that loads it and, on a CPU, runs it.

    It has one encoder at a time: one of other settings replaces it. A forked process inherits the encoder but not the
    thread, and starts one at its first call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: WorkerThread | None = None
        self._exiting = threading.Event()
        # Used in the thread alone, so no lock is needed.
        self._files: dict[tuple[str, str | None], _ModelFiles] = {}
        self._loaded: _Loaded | None = None
        self._threads = ModelThreads()
        self._gpu = GpuPlace()

    def run(self, call: Callable[[], _T]) -> _T:
        """Return what `call` returns, or raise what it raises, in the thread."""
        return self._submit(call).result()

    def start_reading(self, settings: EncoderSettings) -> None:
        """Have the thread read the files of `settings`, without waiting for it."""
        self._submit(lambda: self._read_files(settings))

    def _submit(self, call: Callable[[], _T]) -> Future[_T]:
        with self._lock:
            if self._thread is None or not self._thread.thread.is_alive():
                self._thread = WorkerThread("model")
                # After torch's import, so that this runs before torch's own exit functions.
                atexit.register(self._end, self._thread)
            thread = self._thread
        return thread.submit(call)

    def load(
        self,
        settings: EncoderSettings,
        contents: Contents = Contents(),  # noqa: B008 - immutable
        threads: int | None = None,
    ) -> TextEncoder:
        """Return the encoder for `settings`, as load_encoder does; must be called in the thread."""
        loaded, described = self._loaded, self._files.get(_key(settings))
        if (
            loaded is None
            or loaded.settings != settings
            or not loaded.source.may_be(contents)
            or (described and described.source != loaded.source)
        ):
            self._loaded = None
            files = described or self._read_files(settings, contents)
            encoder = _ThreadedEncoder(
                files.checkpoint,
                files.tokenizer,
                device=self._gpu.choose(settings.device),
                dtype=settings.dtype,
                prompt=settings.prompt,
                on_long=settings.on_long,
                normalize=settings.normalize,
            )
            encoder.on_progress = self._count_texts
            self._loaded = loaded = _Loaded(encoder, settings, files.source)
        self._files.clear()
        self._threads.fix(threads)
        self.adjust_threads()
        return loaded.encoder

    def describe(self, settings: EncoderSettings) -> ModelDescription:
        """Return the description of the encoder for `settings`, from its files of now; must be called in the thread."""
        check_options(prompt=settings.prompt, on_long=settings.on_long, dtype=settings.dtype)
        checkpoint, tokenizer, source = self._read_files(settings)
        check_vocabulary(checkpoint.name, checkpoint.state)
        parts = fingerprint_parts(
            checkpoint,
            tokenizer.sha256,
            prompt=settings.prompt,
            on_long=settings.on_long,
            normalize=settings.normalize,
            dtype=settings.dtype,
        )
        dim = checkpoint.state["text_projection"].shape[1]  # text_projection: [width, dim]
        info = ModelInfo(
            checkpoint.name,
            checkpoint.sha256,
            checkpoint.untrained,
            dim,
            fingerprint(parts),
            parts,
            checkpoint.notice,
        )
        context_length = checkpoint.state["positional_embedding"].shape[0]  # [context_length, width]
        return ModelDescription(info, source.contents, context_length)

    def logit_scale(self, settings: EncoderSettings, other: str) -> float:
        """Return the checkpoint's factor for `other`; must be called in the thread."""
        return read_logit_scale(self._read_files(settings).checkpoint.state, other)

    def _read_files(self, settings: EncoderSettings, contents: Contents = Contents()) -> _ModelFiles:  # noqa: B008
        """Return checkpoint and vocabulary, kept until the encoder is built; they are read again if they were replaced."""
        key, paths = _key(settings), (fspath(settings.path), settings.vocabulary_path)
        # Before they are read: a later change is then seen.
        versions = tuple(local_version(path) for path in paths if is_local(path))
        if key not in self._files or self._files[key].source.versions != versions:
            self._files.clear()
            copies = [local_copy(path, content) for path, content in zip(paths, contents, strict=True)]
            contents = Contents(
                *(None if is_local(path) else content_of(copy) for path, copy in zip(paths, copies, strict=True))
            )
            try:
                source = _Source(versions, contents)
                files = _ModelFiles(load_checkpoint(copies[0]), ClipTokenizer(copies[1]), source)
            except (CheckpointError, TokenizerError) as error:  # it names the copy, whose path the user did not give
                text = str(error)
                for path, copy in zip(paths, copies, strict=True):
                    text = text.replace(copy, path)
                raise type(error)(text) from None
            self._files[key] = files
        return self._files[key]

    def _count_texts(self, texts: int) -> None:
        """Count embedded texts; at the exit of the process, end the thread instead of computing a batch for minutes."""
        if self._exiting.is_set():
            raise SystemExit
        count_model_texts(texts)
        self.adjust_threads()

    def adjust_threads(self) -> None:
        """Adjust the number of the model's threads; must be called in the thread."""
        if self._loaded and self._loaded.encoder.device.type == "cpu":
            self._threads.adjust()

    def _end(self, thread: WorkerThread) -> None:
        """End `thread` and wait for it: a process that exits while torch computes is aborted."""
        self._exiting.set()
        thread.end()
        thread.thread.join()


def _key(settings: EncoderSettings) -> tuple[str, str | None]:
    """Return what names the files of `settings`."""
    return settings.path, settings.tokenizer_path


_PROCESS_ENCODER = EncoderThread()


class _ThreadedEncoder(TextEncoder):
    """A TextEncoder that, on a CPU, computes in the model's thread, whichever thread calls it."""

    def encode_rows(self, texts: Iterable[Text]) -> Encoding:
        if self.device.type != "cpu":  # no pool of threads, and other threads can tokenize while the GPU computes
            return super().encode_rows(texts)
        self._pid = os.getpid()  # the thread is one of this process, also after a fork
        return _PROCESS_ENCODER.run(lambda: super(_ThreadedEncoder, self).encode_rows(texts))


def load_encoder(
    settings: EncoderSettings,
    contents: Contents = Contents(),  # noqa: B008 - immutable
    threads: int | None = None,
) -> TextEncoder:
    """Return this process's encoder for `settings`; it replaces an encoder of other settings.

    On a CPU it computes with `threads` threads, or with a share of the machine's cores.
    Raises ReplacedError if a file on an object store is not what `contents` says.
    """
    return _PROCESS_ENCODER.run(lambda: _PROCESS_ENCODER.load(settings, contents, threads))


def start_reading(settings: EncoderSettings) -> None:
    """Have local files of `settings` read while the caller goes on; the first one that uses them gets their faults."""
    if is_local(settings.path) and is_local(settings.vocabulary_path):
        _PROCESS_ENCODER.start_reading(settings)


def describe_model(settings: EncoderSettings) -> ModelDescription:
    """Return the description of the encoder for `settings`, without building it.

    Raises ValueError or OSError, worded for users, if its files cannot be used.
    """
    return _PROCESS_ENCODER.run(lambda: _PROCESS_ENCODER.describe(settings))


def logit_scale(settings: EncoderSettings, other: str) -> float:
    """Return the factor that AudioCLIP multiplies cosines of texts with `other`, "audio" or "image", by.

    Raises ValueError if the checkpoint does not contain it.
    """
    return _PROCESS_ENCODER.run(lambda: _PROCESS_ENCODER.logit_scale(settings, other))
