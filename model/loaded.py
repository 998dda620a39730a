"""What the encoders of all heads have in common once they are loaded: who may call them, and how they are pickled."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, TypeVar

import torch

from .device import pick_device, unseen_gpu
from .head import EncoderSettings, ModelInfo
from .memory import device_error, is_out_of_memory, loading_errors

Result = TypeVar("Result")


class LoadedEncoder:
    """The part of an encoder that does not depend on its head.

    An encoder that was created by `load` can be pickled: it is loaded again from the same paths.

    Attributes:
        info: What it is: checkpoint, dim, fingerprint.
        settings: What it was loaded from.
        device: The device that it computes on.
        on_progress: Called with the number of contents that went through the model since the last call.
        run_call: If set, it runs calls that compute on a CPU, in one thread of the process.
        decoding: Called with each content that is decoded; returns a context manager for that.
    """

    info: ModelInfo
    settings: EncoderSettings
    device: torch.device
    on_progress: Callable[[int], object]
    run_call: Callable[[Callable[[], Any]], Any] | None
    decoding: Callable[[object], AbstractContextManager[object]]
    _pid: int
    _loaded: bool

    def _start(self, info: ModelInfo, settings: EncoderSettings, device: torch.device) -> None:
        """Set all of these attributes."""
        self.info, self.settings, self.device, self.device_type = info, settings, device, device.type
        if device.type == "cuda":
            # Before the first attention: cuDNN's, which torch may prefer, builds a plan for each new shape in 20 to 400 ms.
            os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
        self.on_progress = lambda contents: None
        self.run_call = None
        self.decoding = nullcontext
        self._pid = os.getpid()
        self._loaded = False

    def _mark_loaded(self) -> None:
        """Allow to pickle it, and warn, in the name of the caller of `load`, about a head that is not AudioCLIP's."""
        self._loaded = True
        if self.info.notice:
            warnings.warn(self.info.notice, stacklevel=4)

    @property
    def dim(self) -> int:
        """Numbers per vector."""
        return self.info.dim

    @property
    def fingerprint(self) -> str:
        """The hash of everything that decides a vector."""
        return self.info.fingerprint

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the settings; raise TypeError for an encoder that `load` did not create."""
        if not self._loaded:
            name = type(self).__name__
            article = "an" if name[0] in "AEIOU" else "a"
            raise TypeError(f"{article} {name} made of a Checkpoint cannot be pickled: create it by {name}.load")
        return _load_again, (type(self), self.settings, self.fingerprint)

    @classmethod
    def _load(cls, settings: Any) -> Self:
        """Return the encoder of these settings, for `load`."""
        settings.check()
        device = pick_device(settings.device, settings.dtype)  # fails before a checkpoint of half a gigabyte is read
        if note := unseen_gpu(settings.device):
            warnings.warn(note, RuntimeWarning, stacklevel=3)
        with loading_errors(device):
            encoder = cls._read(settings)
        encoder._mark_loaded()
        return encoder

    @classmethod
    def _read(cls, settings: Any) -> Self:
        """Return the encoder of settings that were checked."""
        raise NotImplementedError

    def _run(self, compute: Callable[[], Result], contents: str) -> Result:
        """Return compute(), in the thread that may compute; `contents` names what it embeds, as in "3 texts".

        Raises:
            MemoryError: The memory does not suffice.
            DeviceError: The device is broken for this process, or an InstallationError: torch does not fit it.
            RuntimeError: This process was forked from the encoder's, and torch would wait for threads that do not exist.
        """
        if self.run_call is not None and self.device.type == "cpu":
            result: Result = self.run_call(lambda: self._compute(compute, contents))
            return result
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this {type(self).__name__} belongs to process {self._pid}, of which process {os.getpid()} is a fork, and "
                "torch may hang there: load an encoder in the new process, or start it with multiprocessing's spawn method"
            )
        return self._compute(compute, contents)

    def _compute(self, compute: Callable[[], Result], contents: str) -> Result:
        try:
            return compute()
        except Exception as error:
            if failed := device_error(self.device, error):
                raise failed from error
            if isinstance(error, MemoryError) or not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"{self.device} has too little free memory for {contents}: free some, or encode fewer at a time ({error})"
            ) from error


def _load_again(encoder_class: type[LoadedEncoder], settings: EncoderSettings, fingerprint: str) -> LoadedEncoder:
    """Return the encoder that was pickled; raise ValueError if its files have changed."""
    encoder = encoder_class._load(settings)
    if encoder.fingerprint != fingerprint:
        raise ValueError(
            f"{settings.path} gives other vectors than the {encoder_class.__name__} that was pickled: its fingerprint is "
            f"{encoder.fingerprint[:8]} instead of {fingerprint[:8]}; use the same files and package versions"
        )
    return encoder
