"""Find, read, check and extract one head of a checkpoint."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .files import replace_file, sha256_of_file
from .fingerprint import SCHEME
from .head import ModelInfo
from .messages import OneLineError
from .paths import given_path
from .release import UNTRAINED, fetch_command, resolve_checkpoint
from .tensors import number_fault, weights_digest

MAX_NAMED_FAULTS = 10  # further faults are only counted
MAX_PICKLE_PROTOCOL = 3  # torch writes protocol 2; its weights_only reader knows the operations of 3, but not of 4


class CheckpointError(OneLineError, ValueError):
    """A checkpoint that is missing, damaged, or without the head that is needed; the message names the remedy."""


class Shapes(Protocol):
    """The module `shapes` of a head: which tensors it has, and what they must be."""

    NAME: str

    def is_member(self, name: str) -> bool:
        """Return whether a tensor of a released checkpoint belongs to the head, or is a scale."""

    def faults(self, state: Mapping[str, Tensor]) -> list[str]:
        """Return a line for each tensor that is missing, unknown, not a plain float, or of the wrong shape."""

    def describe_difference(self, state: Mapping[str, Tensor]) -> str:
        """Return how the head differs from AudioCLIP's; "" if it does not."""

    def untrained_state(self) -> dict[str, Tensor]:
        """Return a head of AudioCLIP's shapes with random weights."""


def shapes_of(head: str) -> Shapes:
    """Return the module `shapes` of a head."""
    return cast(Shapes, import_module(f"{__package__}.{head}.shapes"))


@dataclass(frozen=True)
class Checkpoint:
    """One head of a checkpoint.

    Attributes:
        state: Tensor names to float32 tensors, including the logit scales.
        name: The file's name or "untrained".
        sha256: That of the file or, if untrained, of the tensors.
        untrained: Whether the weights are random.
        head: The name of the head.
        released: The sha256 of the released file that it is from, "untrained", or "" if that is not known.
    """

    state: dict[str, Tensor]
    name: str
    sha256: str
    untrained: bool
    head: str = "text"
    released: str = ""

    def info(self, dim: int, parts: Mapping[str, str], limit: int | None = None) -> ModelInfo:
        """Return what an encoder of this checkpoint is.

        Args:
            dim: Numbers per vector.
            parts: The parts of the fingerprint that do not follow from the checkpoint.
            limit: How many units of a content it reads, or None.
        """
        common = {"scheme": SCHEME, "head": self.head, "weights": weights_digest(self.state)}
        return ModelInfo(
            self.head,
            self.name,
            self.sha256,
            self.untrained,
            dim,
            {**common, **parts},
            limit=limit,
            notice=self.notice,
            released=self.released,
        )

    @property
    def notice(self) -> str:
        """What a user must know of a head that is not AudioCLIP's, as far as its tensors show, else ""."""
        shapes = shapes_of(self.head)
        difference = shapes.describe_difference(self.state)
        if not difference:
            return ""
        return (
            f"{self.name} is not AudioCLIP's {shapes.NAME} ({difference}): its vectors belong to another "
            f"space and cannot be compared with those of AudioCLIP's texts, images or sounds"
        )


def load_checkpoint(path: str | os.PathLike[str], head: str = "text") -> Checkpoint:
    """Return one head of a .pt, of a .safetensors that `extract` wrote, of "full" or "partial" in .cache, or "untrained".

    Tensors of float16, bfloat16 and float64 become float32. Raises CheckpointError if the file does not exist or is
    damaged, or if tensors are missing, unknown, not finite, of another dtype or of the wrong shape.
    """
    shapes = shapes_of(head)
    if os.fspath(path) == UNTRAINED:
        random = shapes.untrained_state()
        return Checkpoint(random, UNTRAINED, weights_digest(random), True, head, UNTRAINED)
    file = Path(resolve_checkpoint(path))
    if not file.is_file():
        raise CheckpointError(_missing_message(file, os.fspath(path)))
    is_extracted = file.suffix == ".safetensors"
    tensors, metadata = _read_safetensors(file) if is_extracted else (_read_pt(file), {})
    untrained = metadata.get("weights") == UNTRAINED
    mapped = {name: tensor for name, tensor in tensors.items() if shapes.is_member(name)}
    del tensors
    faults = shapes.faults(mapped)
    state: dict[str, Tensor] = {}
    if not faults:
        state = _copy(mapped, file)
        faults = [f"{name} {fault}" for name, tensor in state.items() if (fault := number_fault(name, tensor))]
    if faults:
        more = f"; and {len(faults) - MAX_NAMED_FAULTS} more" if len(faults) > MAX_NAMED_FAULTS else ""
        raise CheckpointError(
            f"{file} does not contain an AudioCLIP {shapes.NAME}: {'; '.join(faults[:MAX_NAMED_FAULTS])}{more}; give a "
            f"released .pt, or a .safetensors that `audioclip extract --head {head}` wrote"
        )
    sha256 = sha256_of_file(file)
    released = UNTRAINED if untrained else metadata.get("source_sha256", "") if is_extracted else sha256
    return Checkpoint(state, file.name, sha256, untrained, head, released)


def _copy(mapped: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return float32 copies of tensors that are mapped from `file`, of which at most one is in memory at a time.

    A mapped tensor would change with the file, and a truncated file would end the process.
    """
    release, copies = _releaser(file), {}
    for name in sorted(mapped, key=lambda name: -mapped[name].numel()):  # the largest while there are no copies yet
        copies[name] = mapped[name].detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        release(mapped[name].untyped_storage())
    return {name: copies[name] for name in mapped}


def _releaser(file: Path) -> Callable[[torch.UntypedStorage], None]:
    """Return a function that lets the kernel drop the pages of a storage in a mapping of `file`; Linux reads them again."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
        madvise, drop = ctypes.CDLL(None).madvise, mmap.MADV_DONTNEED
    except (OSError, AttributeError):  # another system
        return lambda storage: None
    path = os.path.realpath(file)
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines if line.endswith(f" {path}")]

    def release(storage: torch.UntypedStorage) -> None:
        start, end = storage.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE, storage.data_ptr() + storage.nbytes()
        if any(first <= start and end <= last for first, last in ranges):  # other memory would be lost
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), drop)

    return release


def _missing_message(file: Path, word: str) -> str:
    existing = next(path for path in (file, *file.absolute().parents) if path.exists())
    reason = "it is not a regular file" if existing == file else f"the nearest existing path is {existing}"
    return (
        f"no checkpoint at {file} ({reason}): run `{fetch_command(word, file)}`, or give the path of a .pt or .safetensors "
        f"file, or the word untrained (random weights, for testing only)"
    )


def _read_pt(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a .pt by name, mapped from the file; code in its pickle never runs.

    Only the zip format is read: torch before 2.6 runs code of the older tar format despite weights_only (CVE-2025-32434).
    """
    with file.open("rb") as handle:
        is_zip = handle.read(4) == b"PK\x03\x04"
    if not is_zip:
        raise CheckpointError(
            f"{file} is not a PyTorch zip archive: it is another kind of file, or was saved by torch before 1.6; fetch it "
            f"again, or save its state dict again with a current torch"
        )
    _check_members(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickle protocol 3 is read too, with a warning
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} is not a plain state dict: it is damaged, or its pickle contains more than tensors, and code in a "
            f"checkpoint is never run; fetch the released file again"
        ) from None
    except Exception as error:  # damaged bytes lead the reader anywhere: KeyError, AttributeError, RuntimeError, ...
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(
            f"{file} cannot be read as a PyTorch checkpoint: it is damaged ({reason}); fetch it again"
        ) from None
    content = type(loaded).__name__
    if isinstance(loaded, Mapping):
        content = ", ".join(
            [  # the text of a key that is neither string nor number may be endless
                str(k)[:100] if isinstance(k, str | int) else type(k).__name__
                for k, v in loaded.items()
                if not (isinstance(k, str) and isinstance(v, Tensor))
            ][:MAX_NAMED_FAULTS]
        )
    if content:
        raise CheckpointError(
            f"{file} does not contain a flat state dict of tensors but {content}: save model.state_dict() alone"
        )
    return dict(loaded)


def _check_members(file: Path) -> None:
    """Raise CheckpointError if the members of a .pt are compressed, damaged, or pickled in a way that torch cannot read.

    torch compresses nothing, so a compressed member may be a zip bomb; and it does not check checksums.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            compressed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
            if compressed or sum(member.file_size for member in members) > file.stat().st_size:
                reason = (
                    f"{compressed[0][:100]!r} is compressed" if compressed else "its members are larger than the file"
                )
                raise CheckpointError(f"{file} was not written by torch.save: {reason}; fetch the released file again")
            if any(member.file_size and not member.CRC for member in members):
                raise CheckpointError(
                    f"{file} has no checksums, so damage cannot be found: save its state dict again after "
                    f"torch.serialization.set_crc32_options(True)"
                )
            broken = archive.testzip()
            protocol = _pickle_protocol(archive, members)
    except CheckpointError:
        raise
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        NotImplementedError,
        EOFError,
        RuntimeError,
        struct.error,
    ) as error:
        raise CheckpointError(
            f"{file} is not a complete zip archive ({error}): it is damaged or only partly downloaded; fetch it again"
        ) from None
    if broken:
        raise CheckpointError(
            f"{file} is damaged: the checksum of its member {broken[:100]!r} is wrong; fetch it again"
        )
    if protocol > MAX_PICKLE_PROTOCOL:
        raise CheckpointError(
            f"{file} has pickle protocol {protocol}, and torch reads checkpoints without running their code only up to "
            f"protocol {MAX_PICKLE_PROTOCOL}: save its state dict again without pickle_protocol"
        )


def _pickle_protocol(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> int:
    """Return the protocol of data.pkl in a .pt, or 0 if the file lacks it."""
    for member in members:
        if member.filename.endswith("data.pkl"):
            with archive.open(member) as opened:
                start = opened.read(2)
            return start[1] if len(start) == 2 and start[:1] == pickle.PROTO else 0
    return 0


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a .safetensors file by name, and its metadata."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        return load_file(file), metadata
    except Exception as error:  # a size that is too large raises TypeError in torch, with lines of C++
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(
            f"{file} cannot be read as safetensors ({reason}): if it is damaged, extract it again from the released file"
        ) from None


def extract(source: str | os.PathLike[str], target: str | os.PathLike[str], head: str = "text") -> None:
    """Write one head of checkpoint `source`, and all logit scales, to the .safetensors file `target`.

    Of the 537 MB of a released file the text head has 254, the image head 153, the audio head 129.

    Raises CheckpointError as load_checkpoint does, and if the name of `target` does not end in .safetensors.
    """
    target = Path(given_path(target))
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target} must end in .safetensors, the format that is written")
    checkpoint = load_checkpoint(source, head)
    metadata = {"source": checkpoint.name, "source_sha256": checkpoint.sha256}
    if checkpoint.untrained:
        metadata["weights"] = UNTRAINED
    elif checkpoint.released:  # of a head that was extracted before, the digest of the first source
        metadata["source_sha256"] = checkpoint.released
    try:
        with replace_file(target) as temporary:
            save_file(checkpoint.state, temporary, metadata)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{target} cannot be written ({error}): free disk space, or give another path") from None
