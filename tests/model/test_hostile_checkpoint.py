"""Malicious checkpoints and vocabularies: one clear line before a row is read, and no code of theirs runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from audioclip_beam.model.checkpoint import CheckpointError, load_checkpoint
from audioclip_beam.model.text.shapes import text_shapes
from audioclip_beam.model.text.tokenizer import ClipTokenizer, TokenizerError
from audioclip_beam.pipeline.cli import main
from tests.support.preloaded import preloaded_programs

State = dict[str, torch.Tensor]


class _Evil:
    """An object whose unpickling runs a command."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def head(**changes: torch.Tensor) -> State:
    """A small text head, with tensors replaced."""
    shapes = text_shapes(64, 2, 100, 77, 32)
    return {name: torch.ones(shape) for name, shape in shapes.items()} | changes


def pt(content: object, **options: object) -> bytes:
    """The bytes that torch.save writes."""
    out = io.BytesIO()
    torch.save(content, out, **options)  # type: ignore[arg-type]
    return out.getvalue()


def repacked(data: bytes, **members: bytes) -> bytes:
    """A .pt with its members compressed, some of them replaced."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.rpartition("/")[2].replace(".", "_"), old.read(name)))
    return out.getvalue()


def forged(header: object, body: bytes = bytes(256), length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    """The header's entry for one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def damaged(name: str) -> bytes:
    """The content of a malicious or damaged file: the start of a PNG, a shell script, another model, ..."""
    whole = pt(head())
    tensors = save(head())
    return {
        "image.pt": b"\x89PNG\r\n\x1a\n" + bytes(1000),
        "script.pt": b"#!/bin/sh\ntouch pwned\n",
        "zip-of-text.pt": repacked(whole, data_pkl=b"hello"),
        "cut.pt": whole[: len(whole) // 2],
        "started.pt": whole[:4096],
        "no-end.pt": whole[:-30],
        "holes.pt": whole[: len(whole) // 3] + bytes(len(whole) // 3) + whole[2 * (len(whole) // 3) :],
        "bomb.pt": repacked(whole, data_pkl=bytes(64 << 20)),
        "code.pt": pt({"text_projection": _Evil()}),
        "code-beside.pt": pt(head() | {"more": _Evil()}),  # type: ignore[operator]
        "plain-pickle.pt": pickle.dumps(_Evil()),
        "tar.pt": pt(head(), _use_new_zipfile_serialization=False),
        "module.pt": pt(torch.nn.Linear(2, 2)),
        "array.pt": pt({"text_projection": np.zeros(3)}),
        "list.pt": pt([torch.ones(3)]),
        "other-model.pt": pt(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 5)).state_dict()),
        "image-tower.pt": pt({"visual.conv1.weight": torch.ones(3, 3)}),
        "shape.pt": pt(head(text_projection=torch.ones(65, 32))),
        "nan.pt": pt(head(text_projection=torch.full((64, 32), torch.nan))),
        "infinite.pt": pt(head(text_projection=torch.full((64, 32), -torch.inf))),
        "integers.pt": pt(head(text_projection=torch.ones((64, 32), dtype=torch.int8))),
        "complex.pt": pt(head(text_projection=torch.ones((64, 32), dtype=torch.complex64))),
        "bools.pt": pt(head(text_projection=torch.ones((64, 32), dtype=torch.bool))),
        "code.safetensors": pickle.dumps(_Evil()),
        "swapped.safetensors": whole,
        "swapped.pt": tensors,
        "cut.safetensors": tensors[: len(tensors) // 2],
        "started.safetensors": tensors[:100],
        "longer.safetensors": tensors + b"more",
        "empty.safetensors": b"",
        "length.safetensors": forged({}, length=2**63),
        "negative.safetensors": forged({}, length=2**64 - 1),
        "hundred-megabytes.safetensors": forged({}, length=90 << 20),
        "json.safetensors": forged(b'{"a": '),
        "list.safetensors": forged([1, 2]),
        "deep.safetensors": forged(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        "outside.safetensors": forged({"a": entry(0, 1 << 40, [1 << 38])}),
        "backwards.safetensors": forged({"a": entry(256, 0, [64])}),
        "overlap.safetensors": forged({"a": entry(0, 256, [64]), "b": entry(128, 256, [32])}),
        "hole.safetensors": forged({"a": entry(128, 256, [32])}),
        "size.safetensors": forged({"a": entry(0, 256, [63])}),
        "overflow.safetensors": forged({"a": entry(0, 256, [2**62, 2**62, 64])}),
        "sizes.safetensors": forged({"a": entry(0, 0, [2**63, 0])}, b""),
        "dtype.safetensors": forged({"a": entry(0, 256, [64], "F128")}),
        "wrong-dtype.safetensors": forged({"a": entry(0, 256, [64], "F64")}),
        "integers.safetensors": save(head(text_projection=torch.ones((64, 32), dtype=torch.int64))),
        "twice.safetensors": forged(b'{"a":{"dtype":"F32","shape":[64],"data_offsets":[0,256]},'
                                   b'"a":{"dtype":"F32","shape":[64],"data_offsets":[0,256]}}'),
    }[name]  # fmt: skip


MESSAGES = {
    "image.pt": "is not a PyTorch zip archive: it is another kind of file",
    "script.pt": "is not a PyTorch zip archive: it is another kind of file",
    "zip-of-text.pt": "is compressed",
    "cut.pt": "only partly downloaded; fetch it again",
    "started.pt": "only partly downloaded; fetch it again",
    "no-end.pt": "only partly downloaded; fetch it again",
    "holes.pt": "is damaged: the checksum of its member 'archive/data/.*' is wrong|is not a complete zip archive",
    "bomb.pt": "was not written by torch.save: 'archive/.*' is compressed",
    "code.pt": "code in a checkpoint is never run",
    "code-beside.pt": "code in a checkpoint is never run",
    "plain-pickle.pt": "is not a PyTorch zip archive",
    "tar.pt": "by torch before 1.6",
    "module.pt": "code in a checkpoint is never run",
    "array.pt": "code in a checkpoint is never run",
    "list.pt": "does not contain a flat state dict of tensors but list",
    "other-model.pt": "does not contain an AudioCLIP text head: token_embedding.weight is missing",
    "image-tower.pt": "does not contain an AudioCLIP text head: token_embedding.weight is missing",
    "shape.pt": r"has shape \[64\] instead of \[65\]|has shape \[65, 32\] instead",
    "nan.pt": "text_projection contains NaN or infinity",
    "infinite.pt": "text_projection contains NaN or infinity",
    "integers.pt": "text_projection is torch.int8 .*not a plain float tensor",
    "complex.pt": "text_projection is torch.complex64 .*not a plain float tensor",
    "bools.pt": "text_projection is torch.bool .*not a plain float tensor",
    "integers.safetensors": "text_projection is torch.int64 .*not a plain float tensor",
    "swapped.pt": "is not a PyTorch zip archive",
    "twice.safetensors": "does not contain an AudioCLIP text head: token_embedding.weight is missing",
}
SAFETENSORS = [
    "code", "swapped", "cut", "started", "longer", "empty", "length", "negative", "hundred-megabytes", "json", "list",
    "deep", "outside", "backwards", "overlap", "hole", "size", "overflow", "sizes", "dtype", "wrong-dtype",
]  # fmt: skip
MESSAGES |= {f"{name}.safetensors": "cannot be read as safetensors" for name in SAFETENSORS}


@pytest.mark.slow
@pytest.mark.parametrize("name", MESSAGES)
def test_a_malicious_checkpoint_fails_before_a_row_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], vocabulary: Path, name: str
) -> None:
    """`audioclip embed` names the file and its fault in one line; no directory is created, no code runs."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("dog\n")
    Path(name).write_bytes(damaged(name))
    command = [
        "embed",
        "--input",
        "a.txt",
        "--output",
        "out",
        "--checkpoint",
        name,
        "--tokenizer_path",
        str(vocabulary),
    ]
    assert main(command) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1, message
    assert name in message
    with pytest.raises(CheckpointError, match=MESSAGES[name]):
        load_checkpoint(name)
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", name}


def test_an_incomplete_download_of_any_length_is_refused(tmp_path: Path) -> None:
    """No part of a .pt or .safetensors is accepted as the complete file."""
    save_file(head(), tmp_path / "a.safetensors")
    (tmp_path / "a.pt").write_bytes(pt(head()))
    for name in ("a.pt", "a.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for share in range(40):
            (tmp_path / f"half{name}").write_bytes(whole[: len(whole) * share // 40])
            with pytest.raises(CheckpointError, match=f"half{name}"):
                load_checkpoint(tmp_path / f"half{name}")


@pytest.mark.slow
def test_a_zip_bomb_is_never_decompressed(tmp_path: Path) -> None:
    """Half a gigabyte compressed to half a megabyte is refused without filling memory."""
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as member:
        for _ in range(512):
            member.write(bytes(1 << 20))
    code = (
        "import sys\n"
        "from tests.support.memory import peak\n"
        "from audioclip_beam.model.checkpoint import load_checkpoint\n"
        "before = peak()\n"
        "try: load_checkpoint(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
        "print((peak() - before) >> 10)\n"
    )
    done = subprocess.run(
        [preloaded_programs() / "python", "-c", code, str(bomb)], capture_output=True, text=True, check=True
    )
    message, memory = done.stdout.splitlines()
    assert "is compressed" in message
    assert int(memory) < 100


def test_members_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    """A small archive can claim to be large by several entries for the same bytes."""
    data = bytearray(pt(head()))
    names = zipfile.ZipFile(io.BytesIO(data)).infolist()
    largest = max(names, key=lambda member: member.file_size)
    start = data.rindex(largest.filename.encode())  # in the central directory
    struct.pack_into("<II", data, start - 46 + 20, 1 << 30, 1 << 30)
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="its members are larger than the file"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"\xff" * 100), gzip.compress(b"a b\n" * 60_000), gzip.compress(bytes(64 << 20))],
    ids=["empty", "text", "bytes", "repeated", "bomb"],
)
def test_a_malicious_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    """Neither a decompression bomb nor another file is accepted as CLIP's vocabulary."""
    (tmp_path / "v.gz").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"v\.gz .*CLIP's contains 48,894 merges"):
        ClipTokenizer(tmp_path / "v.gz")


def test_an_endless_vocabulary_is_not_read_for_ever() -> None:
    """A device is read for some megabytes only."""
    with pytest.raises(TokenizerError, match="CLIP's contains 48,894 merges"):
        ClipTokenizer("/dev/zero")
