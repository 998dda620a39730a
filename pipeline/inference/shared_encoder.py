"""EncoderThread: the one encoder of a process, loaded and, on a CPU, run in its own thread.

OpenMP keeps a pool of threads for every thread that computes, and two pools in one process slow each other down: a model
that was loaded in one thread and run in another lost 5 to 20 % of its speed (benchmarks/README.md).
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ...model.head import Encoder, EncoderSettings, Head, ModelInfo
from ..io.local_cache import Content, content_of, local_copy
from ..io.paths import is_local
from ..io.versions import local_version
from ..io.worker_thread import WorkerThread
from ..metrics import count_embedded_items
from ..remote.decoder_watch import decoding_content
from .gpus import GpuPlace
from .model_threads import ModelThreads

_T = TypeVar("_T")

# What the files of an encoder contained when the job was started, in the order of its settings; None for a local file.
Contents = tuple[Content | None, ...]


@dataclass(frozen=True)
class ModelDescription:
    """An encoder that was not built: all that a worker needs to load it, and to see that it is the right one.

    Attributes:
        head: Its head.
        settings: What it is loaded from.
        info: What it is; the fingerprint has the type in which vectors are stored.
        contents: Its files when the job was started.
    """

    head: Head
    settings: EncoderSettings
    info: ModelInfo
    contents: Contents

    @property
    def stored(self) -> str:
        """The type in which its vectors are stored."""
        return self.info.fingerprint_parts["stored"]


class _Source(NamedTuple):
    """The files of an encoder as they were read: the versions of local files, and the contents of other ones."""

    versions: tuple[str, ...]
    contents: Contents

    def may_be(self, contents: Contents) -> bool:
        """Return whether these are the files that `contents` describes."""
        return not contents or all(
            content in (None, mine) for content, mine in zip(contents, self.contents, strict=True)
        )


class _ModelFiles(NamedTuple):
    """The files of an encoder, read by its head."""

    files: Any
    source: _Source


class _ProcessEncoder(NamedTuple):
    """The encoder of a process, and what it was made of."""

    encoder: Encoder
    head: Head
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
        self._files: dict[tuple[Head, tuple[str, ...]], _ModelFiles] = {}
        self._loaded: _ProcessEncoder | None = None
        self._threads = ModelThreads()
        self._gpu = GpuPlace()

    def run(self, call: Callable[[], _T]) -> _T:
        """Return what `call` returns, or raise what it raises, in the thread."""
        return self._submit(call).result()

    def start_reading(self, head: Head, settings: EncoderSettings) -> None:
        """Have the thread read the files of `settings`, without waiting for it."""
        self._submit(lambda: self._read_files(head, settings))

    def _submit(self, call: Callable[[], _T]) -> Future[_T]:
        with self._lock:
            if self._thread is None or not self._thread.thread.is_alive():
                self._thread = WorkerThread("model")
                # After torch's import, so that this runs before torch's own exit functions.
                atexit.register(self._end, self._thread)
            thread = self._thread
        return thread.submit(call)

    def load(
        self, head: Head, settings: EncoderSettings, contents: Contents = (), threads: int | None = None
    ) -> Encoder:
        """Return the encoder for `settings`, as load_encoder does; must be called in the thread."""
        loaded, described = self._loaded, self._files.get((head, settings.files))
        if (
            loaded is None
            or (loaded.head, loaded.settings) != (head, settings)
            or not loaded.source.may_be(contents)
            or (described and described.source != loaded.source)
        ):
            self._loaded = None
            read = described or self._read_files(head, settings, contents)
            encoder = _load(head, settings, read.files, self._gpu.choose(settings.device))
            encoder.on_progress, encoder.run_call = self._count_items, self.run
            encoder.decoding = decoding_content
            self._loaded = loaded = _ProcessEncoder(encoder, head, settings, read.source)
        self._files.clear()
        self._threads.fix(threads)
        self.adjust_threads()
        return loaded.encoder

    def describe(self, head: Head, settings: EncoderSettings) -> tuple[ModelInfo, Contents]:
        """Return what the encoder for `settings` is, from its files of now; must be called in the thread."""
        settings.check()
        read = self._read_files(head, settings)
        return head.describe(settings, read.files), read.source.contents

    def logit_scale(self, head: Head, settings: EncoderSettings, other: str) -> float:
        """Return the checkpoint's factor for the head `other`; must be called in the thread."""
        return head.logit_scale(self._read_files(head, settings).files, other)

    def _read_files(self, head: Head, settings: EncoderSettings, contents: Contents = ()) -> _ModelFiles:
        """Return the files of an encoder, kept until it is built; they are read again if they were replaced."""
        key, paths = (head, settings.files), settings.files
        # Before they are read: a later change is then seen.
        versions = tuple(local_version(path) for path in paths if is_local(path))
        if key not in self._files or self._files[key].source.versions != versions:
            self._files.clear()
            expected = contents or (None,) * len(paths)
            copies = [local_copy(path, content) for path, content in zip(paths, expected, strict=True)]
            found = tuple(
                None if is_local(path) else content_of(copy) for path, copy in zip(paths, copies, strict=True)
            )
            try:
                files = head.read(copies)
            except ValueError as error:  # it names the copy, whose path the user did not give
                message = str(error)
                for path, copy in zip(paths, copies, strict=True):
                    message = message.replace(copy, path)
                raise type(error)(message) from None
            self._files[key] = _ModelFiles(files, _Source(versions, found))
        return self._files[key]

    def _count_items(self, items: int) -> None:
        """Count what was embedded; at the exit of the process, end the thread instead of computing a batch for minutes."""
        if self._exiting.is_set():
            if self._thread and threading.current_thread() is self._thread.thread:
                raise SystemExit
            raise RuntimeError("this process is about to exit")  # in a thread of Beam's, which computes on a GPU itself
        count_embedded_items(items)
        self.adjust_threads()

    def adjust_threads(self) -> None:
        """Adjust the number of the model's threads; must be called in the thread."""
        if self._loaded and self._loaded.encoder.device_type == "cpu":
            self._threads.adjust()

    def _end(self, thread: WorkerThread) -> None:
        """End `thread` and wait for it, and for the GPU: a process that exits while torch computes is aborted."""
        self._exiting.set()
        thread.end()
        thread.thread.join()
        if self._loaded and self._loaded.encoder.device_type == "cuda":
            from ...model.device import wait_for_launches

            wait_for_launches()


def _load(head: Head, settings: EncoderSettings, files: Any, device: str) -> Encoder:
    from ...model.memory import loading_errors

    with loading_errors(device):
        return head.load(settings, files, device)


_PROCESS_ENCODER = EncoderThread()


def load_encoder(head: Head, settings: EncoderSettings, contents: Contents = (), threads: int | None = None) -> Encoder:
    """Return this process's encoder; it replaces an encoder of another head or of other settings.

    Args:
        head: The head whose encoder it is.
        settings: What it is loaded from.
        contents: What its files must contain; empty if they may contain anything.
        threads: How many threads it computes with on a CPU; by default a share of the machine's cores.

    Raises:
        ReplacedError: A file on an object store is not what `contents` says.
    """
    return _PROCESS_ENCODER.run(lambda: _PROCESS_ENCODER.load(head, settings, contents, threads))


def note_on_gpu(settings: EncoderSettings) -> str:
    """Return a note if settings use the CPU of a machine whose GPU torch does not see; else ""."""
    from ...model.device import unseen_gpu

    return unseen_gpu(settings.device)


def start_reading(head: Head, settings: EncoderSettings) -> None:
    """Have local files of `settings` read while the caller goes on; the first one that uses them gets their faults."""
    if all(map(is_local, settings.files)):
        _PROCESS_ENCODER.start_reading(head, settings)


def describe_model(head: Head, settings: EncoderSettings, stored: str = "float32") -> ModelDescription:
    """Return the description of an encoder, without building it; its vectors are stored as `stored`.

    Raises ValueError or OSError, worded for users, if its files cannot be used.
    """
    info, contents = _PROCESS_ENCODER.run(lambda: _PROCESS_ENCODER.describe(head, settings))
    return ModelDescription(head, settings, info.storing(stored), contents)


def logit_scale(head: Head, settings: EncoderSettings, other: str) -> float:
    """Return the factor that AudioCLIP multiplies cosines with vectors of the head `other` by.

    Raises ValueError if the checkpoint does not contain it.
    """
    return _PROCESS_ENCODER.run(lambda: _PROCESS_ENCODER.logit_scale(head, settings, other))
