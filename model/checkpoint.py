"""Checkpoints: find, read and check the text head of a file, and write it as safetensors."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .text_head import text_head_faults, untrained_state, weights_digest

__all__ = ["Checkpoint", "CheckpointError", "extract", "load_checkpoint", "resolve_checkpoint", "weights_digest"]

UNTRAINED = "untrained"
RELEASED = {"full": "AudioCLIP-Full-Training.pt", "partial": "AudioCLIP-Partial-Training.pt"}
NAMED = 10  # as many faults as an error names


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or holds no AudioCLIP text head; the text says which and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A text head: `state` maps tensor names to float32 tensors, the logit scales among them.

    `name` is the file's name or "untrained", `sha256` that of the file or, untrained, of its tensors.
    """

    state: dict[str, Tensor]
    name: str
    sha256: str
    untrained: bool


def resolve_checkpoint(word: str | os.PathLike[str], cache: str | os.PathLike[str] = ".cache") -> str:
    """Path that `word` stands for: "full" and "partial" are the released files in `cache`; "untrained" stays."""
    word = os.fspath(word)
    return str(Path(cache, RELEASED[word])) if word in RELEASED else word


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Text head of a released .pt, of a text-only .safetensors, of "full" or "partial" in .cache, or "untrained".

    Tensors of lower precision are widened to float32. Raises CheckpointError where there is no such file, it is damaged,
    or tensors are missing, unknown, misshapen or not finite.
    """
    if os.fspath(path) == UNTRAINED:
        state = untrained_state()
        return Checkpoint(state, UNTRAINED, weights_digest(state), True)
    file = Path(resolve_checkpoint(path))
    if not file.is_file():
        raise CheckpointError(_missing(file, os.fspath(path)))
    tensors, untrained = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pt(file)
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(("visual.", "audio."))}
    faults = text_head_faults(state)
    if faults:
        more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise CheckpointError(f"{file} holds no AudioCLIP text head: {'; '.join(faults[:NAMED])}{more}")
    # In memory of their own: what is mapped from a file would change, or end the process, with the file.
    state = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in state.items()}
    return Checkpoint(state, file.name, _sha256(file), untrained)


def _missing(file: Path, word: str) -> str:
    nearest = next(place for place in (file, *file.absolute().parents) if place.exists())
    there = "it is no file" if nearest == file else f"there is {nearest}"
    return (
        f"no checkpoint at {file} ({there}): run `audioclip-text fetch {word if word in RELEASED else 'full'}`, give "
        f"the path of a .pt or .safetensors file, or try the machinery out with the word untrained"
    )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _read_pt(file: Path) -> tuple[dict[str, Tensor], bool]:
    """Tensors of a .pt by name, mapped from the file; no code of its pickle runs.

    The zip format alone: torch before 2.6 runs code of the older tar format in spite of weights_only (CVE-2025-32434).
    """
    with file.open("rb") as handle:
        zipped = handle.read(4) == b"PK\x03\x04"
    if not zipped:
        raise CheckpointError(
            f"{file} is no PyTorch zip archive but another kind of file, or of before torch 1.6: fetch it again, or save "
            f"its state dict again with a present torch"
        )
    _check_members(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} is no plain state dict: it is damaged, or its pickle holds more than tensors, and code in a "
            f"checkpoint is never run; fetch the released file again"
        ) from None
    except Exception as error:  # damaged bytes lead the reader anywhere: KeyError, AttributeError, RuntimeError, ...
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{file} cannot be read as a PyTorch checkpoint: it is damaged ({reason})") from None
    other = type(loaded).__name__
    if isinstance(loaded, Mapping):
        other = ", ".join(
            [  # another key than a name or number may take for ever to be written out
                str(k)[:100] if isinstance(k, str | int) else type(k).__name__
                for k, v in loaded.items()
                if not (isinstance(k, str) and isinstance(v, Tensor))
            ][:NAMED]
        )
    if other:
        raise CheckpointError(f"{file} holds no flat state dict of tensors but {other}: save model.state_dict() alone")
    return dict(loaded), False


def _check_members(file: Path) -> None:
    """CheckpointError where a .pt is not whole by its checksums, which torch does not look at, or where it is packed.

    torch packs nothing: what is packed may be a bomb.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
            if packed or sum(member.file_size for member in members) > file.stat().st_size:
                why = f"{packed[0][:100]!r} is compressed" if packed else "its members hold more bytes than the file"
                raise CheckpointError(f"{file} is nothing that torch.save wrote: {why}; fetch the released file again")
            broken = archive.testzip()
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
            f"{file} is no whole zip archive ({error}): it is damaged or was downloaded in part; fetch it again"
        ) from None
    if broken:
        raise CheckpointError(f"{file} is damaged: {broken[:100]!r} in it fails its checksum; fetch it again")


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], bool]:
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        return load_file(file), metadata.get("weights") == UNTRAINED
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error}") from None


def extract(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write the text head of checkpoint `source` to the .safetensors file `target`: 254 MB instead of 537.

    Raises CheckpointError as load_checkpoint does, and where `target` is not named .safetensors.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target} must end in .safetensors, the format that is written")
    checkpoint = load_checkpoint(source)
    metadata = {"source": checkpoint.name, "source_sha256": checkpoint.sha256}
    if checkpoint.untrained:
        metadata["weights"] = UNTRAINED
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Copies, because safetensors refuses tensors that share memory.
        state = {name: t.clone(memory_format=torch.contiguous_format) for name, t in checkpoint.state.items()}
        save_file(state, temporary, metadata)
        os.replace(temporary, target)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
