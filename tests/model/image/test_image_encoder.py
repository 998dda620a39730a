"""ImageEncoder: order, batches, errors by place, hostile files, low memory, pickles, and what it refuses."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import pickle
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from audioclip_beam.model import ImageEncoder
from audioclip_beam.model.checkpoint import Checkpoint
from audioclip_beam.model.image.encoder import MAX_PICTURES, ImageError
from audioclip_beam.model.image.settings import ImageSettings
from audioclip_beam.model.tensors import SCALES
from tests.support.picture_files import encoded, picture
from tests.support.plain_image import plain_input, plain_pixels, plain_vectors, relative, small_image_state

CONTENTS = [encoded(picture(seed, 30 + 20 * seed, 90)) for seed in range(12)]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """A small image head."""
    return Checkpoint(small_image_state(), "small", "0" * 64, True, "image")


@pytest.fixture
def encoder(checkpoint: Checkpoint) -> ImageEncoder:
    return ImageEncoder(checkpoint, ImageSettings("small", device="cpu"))


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> npt.NDArray[np.float64]:
    """The oracle's vectors of CONTENTS."""
    x = torch.stack([plain_input(plain_pixels(content)) for content in CONTENTS])
    return plain_vectors(checkpoint.state, x).numpy()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a small image head with its scales."""
    path = tmp_path_factory.mktemp("head") / "small.pt"
    torch.save({**small_image_state(), **{name: torch.tensor(1.0) for name in SCALES}}, path)
    return path


def png(width: int, height: int, bits: int = 1, rows: int = 0) -> bytes:
    """Return a grey PNG that claims a size and has so many rows of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    compress = zlib.compressobj(9)
    row = bytes(1 + (width * bits + 7) // 8)
    data = b"".join(compress.compress(row) for _ in range(rows)) + compress.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_vectors_are_the_oracles(encoder: ImageEncoder, expected: npt.NDArray[np.float64], tmp_path: Path) -> None:
    """Paths, bytes, PIL images and arrays of the same pixels have the same vectors, in the order given."""
    path = tmp_path / "a.png"
    path.write_bytes(CONTENTS[2])
    array = np.asarray(Image.open(io.BytesIO(CONTENTS[3])))
    forms = [CONTENTS[0], bytearray(CONTENTS[1]), path, array, str(path), memoryview(CONTENTS[4])]
    forms.append(Image.open(io.BytesIO(CONTENTS[5])))
    encoding = encoder.encode_rows(forms)
    assert relative(encoding.vectors, expected[[0, 1, 2, 3, 2, 4, 5]]).max() < 5e-6
    assert (encoding.vectors.dtype, encoding.errors) == (np.float32, {})
    assert encoding.columns["width"].tolist() == [30, 50, 70, 90, 70, 110, 130]
    assert encoding.columns["height"].tolist() == [90] * 7
    assert (encoding.work.items, encoding.work.units) == (6, 90 * sum([30, 50, 70, 90, 110, 130])), (
        "equal paths count once"
    )


def test_a_vector_does_not_depend_on_its_neighbours(encoder: ImageEncoder, expected: npt.NDArray[np.float64]) -> None:
    """Any split of twelve pictures into calls gives the same vectors, and equal calls give equal bits."""
    whole = encoder.encode(CONTENTS)
    np.testing.assert_array_equal(whole, encoder.encode(CONTENTS))
    for sizes in ([1] * 12, [5, 7], [11, 1], [2, 3, 4, 3]):
        starts = np.cumsum([0, *sizes])
        parts = [encoder.encode(CONTENTS[start:end]) for start, end in itertools.pairwise(starts)]
        assert relative(np.concatenate(parts), whole).max() < 5e-6
    assert (
        relative(encoder.encode([*CONTENTS[::-1], *CONTENTS]), np.concatenate([expected[::-1], expected])).max() < 5e-6
    )


def test_the_number_of_threads_does_not_matter(encoder: ImageEncoder) -> None:
    """Micro-batches have the same pictures on one core and on several."""
    before, vectors = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            vectors.append(encoder.encode(CONTENTS * 2))
    finally:
        torch.set_num_threads(before)
    assert all(relative(other, vectors[0]).max() < 5e-6 for other in vectors[1:])


def test_calls_from_several_threads(encoder: ImageEncoder) -> None:
    """They do not disturb each other, also with the same PIL images, which Pillow reads at their first use."""
    whole = encoder.encode(CONTENTS)
    images = [Image.open(io.BytesIO(content)) for content in CONTENTS]
    with ThreadPoolExecutor(3) as pool:
        for vectors in pool.map(encoder.encode, [images, CONTENTS, images]):
            assert relative(vectors, whole).max() < 5e-6


def test_normalize_and_dtype(checkpoint: Checkpoint, encoder: ImageEncoder) -> None:
    """With normalize, vectors have length 1 and the same direction; in bfloat16 they are close."""
    whole = encoder.encode(CONTENTS[:3])
    unit = ImageEncoder(checkpoint, ImageSettings("small", device="cpu", normalize=True)).encode(CONTENTS[:3])
    np.testing.assert_allclose(unit, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)
    rounded = ImageEncoder(checkpoint, ImageSettings("small", device="cpu", dtype="bfloat16")).encode(CONTENTS[:3])
    assert relative(rounded, whole).max() < 0.05


def test_orientation(checkpoint: Checkpoint, encoder: ImageEncoder, tmp_path: Path) -> None:
    """Files and bytes are turned upright; with variant="jina" and as a PIL image they are taken as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = picture(1, 90, 40)
    content = encoded(stored, exif=exif)
    (tmp_path / "a.png").write_bytes(content)
    upright = encoder.encode([stored.transpose(Image.Transpose.ROTATE_270)])
    turned = encoder.encode_rows([content, tmp_path / "a.png"])
    assert relative(turned.vectors, np.concatenate([upright, upright])).max() < 5e-6
    assert (turned.columns["width"].tolist(), turned.columns["height"].tolist()) == ([40, 40], [90, 90])
    assert relative(encoder.encode([Image.open(io.BytesIO(content))]), encoder.encode([stored])).max() < 5e-6
    jina = ImageEncoder(checkpoint, ImageSettings("small", device="cpu", variant="jina"))
    assert relative(jina.encode([content]), jina.encode([stored])).max() < 5e-6


def test_no_pictures(encoder: ImageEncoder) -> None:
    assert encoder.encode([]).shape == (0, 24)
    assert encoder.encode_rows(iter([])).columns["width"].shape == (0,)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("a.png", r"images must be a list of pictures, not one \(str\): write \[image\]"),
        (b"", r"not one \(bytes\)"),
        (Path("a.png"), "not one .*Path"),
        (picture(0), r"not one \(Image\)"),
        (np.zeros((4, 5, 3), np.uint8), r"not one \(an array of uint8 \[4, 5, 3\]\)"),
        (7, "a list of pictures, not int"),
        (None, "a list of pictures, not NoneType"),
        ([7], "image 0: wrong type: int is not a picture: give a path, bytes, a PIL image or a uint8 array"),
        ([CONTENTS[0], None], "image 1: wrong type: NoneType is not a picture"),
        ([np.zeros((4, 5), np.uint8)], r"image 0: wrong type: an array of uint8 \[4, 5\] is not a picture"),
        ([np.zeros((4, 5, 4), np.uint8)], r"uint8 \[4, 5, 4\] is not a picture: give uint8 \[H, W, 3\]"),
        ([np.zeros((4, 5, 3), np.float32)], r"float32 \[4, 5, 3\] is not a picture"),
        ([np.zeros((0, 5, 3), np.uint8)], r"uint8 \[0, 5, 3\] is not a picture"),
        ([torch.zeros(3, 4, 5)], "Tensor is not a picture"),
    ],
)
def test_other_types_are_refused(encoder: ImageEncoder, images: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        encoder.encode(images)


def test_a_stack_of_arrays_is_a_list(encoder: ImageEncoder) -> None:
    """An array [n, H, W, 3] is n pictures."""
    stack = np.stack([np.asarray(picture(seed)) for seed in range(3)])
    assert relative(encoder.encode(stack), encoder.encode(list(stack))).max() < 5e-6


def hostile(folder: Path) -> list[tuple[Any, str, str]]:
    """Return contents that have no vector, each with the reason and words of the detail."""
    jpeg = encoded(picture(1, 400, 300), "JPEG")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture at all")
    os.mkfifo(folder / "pipe.jpg")
    return [
        (jpeg[: len(jpeg) // 2], "not decodable", "truncated"),
        (jpeg[:20], "not decodable", ""),
        (CONTENTS[1][:-40], "not decodable", ""),
        (CONTENTS[1][:60] + bytes(40) + CONTENTS[1][100:], "not decodable", ""),
        (b"", "empty file", "0 bytes"),
        (folder / "empty.jpg", "empty file", "0 bytes"),
        (folder / "text.jpg", "not decodable", "not one of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF; it begins with b'not "),
        (b"\0\0\0\x18ftypheic" + bytes(99), "not decodable", "HEIC is not read: convert it"),
        (folder / "pipe.jpg", "missing file", "not a regular file"),
        (folder, "missing file", "not a regular file"),
        (folder / "missing.jpg", "missing file", "No such file"),
        ("gs://bucket/a.jpg", "missing file", "give a path of this machine"),
        ("a\0b.jpg", "missing file", "cannot be opened"),
        ("/dev/zero", "missing file", "not a regular file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not decodable", "not one of"),
        (png(50_000, 50_000, rows=500), "too large", "50,000 x 50,000 pixels are 2,500,000,000, over 178,956,970"),
        (png(0, 10), "not decodable", ""),
        (png(3, 3, bits=8), "not decodable", ""),
        (encoded(picture(1), "GIF")[:30], "not decodable", ""),
        (encoded(picture(1), "WEBP")[:40], "not decodable", ""),
        (encoded(picture(1), "TIFF")[:40], "not decodable", ""),
        (encoded(picture(1), "BMP")[:100], "not decodable", ""),
        (encoded(picture(1), "AVIF")[:100], "not decodable", ""),
    ]  # fmt: skip


def test_hostile_files_are_errors_at_their_place(encoder: ImageEncoder, tmp_path: Path) -> None:
    """They end neither the call nor the process, take little time, and their neighbours keep their vectors."""
    cases = hostile(tmp_path)
    contents = [each for content, _, _ in cases for each in (content, CONTENTS[0])]
    began = time.perf_counter()
    encoding = encoder.encode_rows(contents)
    assert time.perf_counter() - began < 60
    for place, (content, reason, detail) in enumerate(cases):
        error = encoding.errors[2 * place]
        assert (error.reason, detail in error.detail) == (reason, True), f"{content!r:.60}: {error}"
        assert error.detail
    assert sorted(encoding.errors) == list(range(0, len(contents), 2))
    assert np.isnan(encoding.vectors[::2]).all()
    assert (encoding.columns["width"][::2] == 0).all()
    whole = np.repeat(encoder.encode(CONTENTS[:1]), len(cases), 0)
    assert relative(encoding.vectors[1::2], whole).max() < 5e-6


def test_encode_names_the_first_error(encoder: ImageEncoder) -> None:
    with pytest.raises(ImageError, match=r"^image 1: empty file: it has 0 bytes$"):
        encoder.encode([CONTENTS[0], b"", b"xyz"])


def test_random_damage_never_raises(encoder: ImageEncoder) -> None:
    """Whatever bytes are changed, a picture has a vector or an error."""
    random = np.random.default_rng(5)
    damaged = []
    for file_format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"):
        content = encoded(picture(3, 120, 80), file_format)
        for _ in range(12):
            changed = bytearray(content)
            for place in random.integers(0, len(content), 6):
                changed[place] = random.integers(0, 256)
            damaged.append(bytes(changed[: random.integers(1, len(content) + 1)] if random.random() < 0.3 else changed))
    encoding = encoder.encode_rows(damaged)
    good = [place for place in range(len(damaged)) if place not in encoding.errors]
    assert {error.reason for error in encoding.errors.values()} <= {"not decodable", "too large"}
    assert np.isfinite(encoding.vectors[good]).all()


def test_limits(checkpoint: Checkpoint) -> None:
    """Bytes and pixels are limited before anything is decoded, and limits above Pillow's are allowed."""
    content = CONTENTS[3]
    strict = ImageEncoder(checkpoint, ImageSettings("small", device="cpu", max_image_bytes=len(content) - 1))
    assert strict.encode_rows([content]).errors[0].detail.endswith(f"over {len(content) - 1:,} (max_image_bytes)")
    strict = ImageEncoder(checkpoint, ImageSettings("small", device="cpu", max_pixels=90 * 90 - 1))
    errors = strict.encode_rows([content, CONTENTS[2], picture(1, 91, 91)]).errors
    assert {place: error.reason for place, error in errors.items()} == {0: "too large", 2: "too large"}
    generous = ImageEncoder(checkpoint, ImageSettings("small", device="cpu", max_pixels=10**9))
    errors = generous.encode_rows([png(20_000, 10_000)]).errors
    assert "too large" not in {error.reason for error in errors.values()}


def test_large_pictures_give_no_warning(encoder: ImageEncoder, recwarn: pytest.WarningsRecorder) -> None:
    """Pillow's own limits belong to the process; the settings' limits are used instead."""
    encoder.encode_rows([png(10_000, 10_000), encoded(picture(1).quantize(8), transparency=b"\1\2\3")])
    assert not recwarn.list


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP", "PNG", "AVIF"])
def test_the_first_frame_is_embedded_and_counted(encoder: ImageEncoder, file_format: str) -> None:
    """Of animations and stacks the first frame is embedded, and the work says how many pictures had more."""
    frames = [picture(seed) for seed in range(3)]
    options = {"lossless": True} if file_format == "WEBP" else {}
    several = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    one = encoded(frames[0], file_format, **options)
    encoding = encoder.encode_rows([several, one])
    assert relative(encoding.vectors[:1], encoding.vectors[1:]).max() < 0.1  # AVIF compresses with a loss
    assert encoding.work.extra["animated"] == 1


def test_damage_behind_the_first_frame_does_not_matter(encoder: ImageEncoder) -> None:
    frames = [picture(seed) for seed in range(2)]
    several = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    encoding = encoder.encode_rows([several[: len(several) - size] for size in (0, 1, 40, 150)])
    assert encoding.errors == {}
    assert relative(encoding.vectors, np.repeat(encoding.vectors[:1], 4, 0)).max() < 5e-6


def test_a_wrong_suffix_does_not_matter(encoder: ImageEncoder, tmp_path: Path) -> None:
    """The content decides what a file is."""
    (tmp_path / "a.jpg").write_bytes(CONTENTS[0])
    assert relative(encoder.encode([tmp_path / "a.jpg"]), encoder.encode(CONTENTS[:1])).max() < 5e-6


def test_extreme_sizes(encoder: ImageEncoder) -> None:
    """A pixel, and lines of 20,000 pixels, have vectors."""
    contents = [encoded(Image.new("L", size, 99)) for size in ((1, 1), (1, 20_000), (20_000, 1))]
    vectors = encoder.encode(contents)
    assert relative(vectors, np.repeat(vectors[:1], 3, 0)).max() < 5e-6


class LowMemory:
    """A tower whose memory suffices for a given number of pictures."""

    def __init__(self, encoder: ImageEncoder, most: int) -> None:
        self.tower, self.most = encoder.tower, most

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return self.tower(x)


@pytest.mark.parametrize("most", [1, 3, 5])
def test_out_of_memory_halves_the_micro_batch(
    encoder: ImageEncoder, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Nothing is lost, and the size is remembered."""
    whole = encoder.encode(CONTENTS)
    monkeypatch.setattr(encoder, "tower", LowMemory(encoder, most))
    encoding = encoder.encode_rows(CONTENTS)
    assert relative(encoding.vectors, whole).max() < 5e-6
    assert encoding.work.oom_retries > 0
    assert encoder.pictures.now <= most < MAX_PICTURES["cpu"]
    assert encoder.encode_rows(CONTENTS).work.oom_retries == 0


def test_out_of_memory_for_one_picture(encoder: ImageEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "tower", LowMemory(encoder, 0))
    with pytest.raises(MemoryError, match="cpu has too little free memory for a single picture: free some, or use"):
        encoder.encode(CONTENTS[:3])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("variant", "clip", "variant='clip': choose one of audioclip, jina"),
        ("dtype", "float64", "dtype='float64': choose one of float32, bfloat16, float16"),
        ("dtype", "float16", "dtype='float16': it needs a CUDA device"),
        ("device", "gpu", "device='gpu': choose one of auto, cpu, cuda, cuda:N"),
        ("max_pixels", 0, "max_pixels=0: give a number of at least 1"),
        ("max_image_bytes", -1, "max_image_bytes=-1: give a number of at least 1"),
    ],
)
def test_unknown_options(saved: Path, option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageEncoder.load(saved, **{"device": "cpu", option: value})


@pytest.mark.filterwarnings("ignore:small.pt is not AudioCLIP's image head")
def test_an_encoder_that_was_loaded_can_be_pickled(saved: Path, encoder: ImageEncoder) -> None:
    """It is loaded again with its settings; one that was made of a Checkpoint cannot be pickled."""
    loaded = ImageEncoder.load(saved, device="cpu", variant="jina", normalize=True, max_pixels=10**6)
    again = pickle.loads(pickle.dumps(loaded))
    assert (again.settings, again.fingerprint) == (loaded.settings, loaded.fingerprint)
    np.testing.assert_array_equal(again.encode(CONTENTS[:2]), loaded.encode(CONTENTS[:2]))
    with pytest.raises(
        TypeError, match=r"an ImageEncoder made of a Checkpoint cannot be pickled: .*ImageEncoder\.load"
    ):
        pickle.dumps(encoder)


def test_another_head_gives_a_warning(saved: Path) -> None:
    sizes = (
        r"24 numbers per vector instead of 1024, width 8 instead of 64, \(1, 1, 1, 1\) blocks instead of \(3, 4, 6, 3\)"
    )
    with pytest.warns(UserWarning, match=rf"small.pt is not AudioCLIP's image head \({sizes}\)"):
        ImageEncoder.load(saved, device="cpu")


def test_the_fingerprint_has_what_decides_a_vector(checkpoint: Checkpoint) -> None:
    """Limits decide no vector."""
    options: list[dict[str, Any]] = [{}, {"variant": "jina"}, {"normalize": True}, {"dtype": "bfloat16"}]
    options.append({"max_pixels": 10**6, "max_image_bytes": 10**6})
    encoders = [ImageEncoder(checkpoint, ImageSettings("small", device="cpu", **each)) for each in options]
    fingerprints = [each.fingerprint for each in encoders]
    assert len(set(fingerprints)) == 4
    assert fingerprints[0] == fingerprints[-1]
    parts = encoders[0].info.fingerprint_parts
    assert (parts["head"], parts["variant"], parts["dtype"], parts["normalize"]) == (
        "image",
        "audioclip",
        "float32",
        "false",
    )


def test_progress_and_run_call(encoder: ImageEncoder) -> None:
    """Pictures are counted as they are done, and run_call gets every call that computes."""
    done: list[int] = []
    names: list[str] = []
    encoder.on_progress = done.append

    def run(call: Any) -> Any:
        names.append(threading.current_thread().name)
        return call()

    encoder.run_call = run
    encoder.encode_rows([*CONTENTS, b""])
    assert sum(done) == 12
    assert len(names) == 1


@pytest.mark.slow
def test_a_forked_process_gets_an_error_instead_of_hanging(encoder: ImageEncoder) -> None:
    encoder.encode(CONTENTS)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe()

    def child() -> None:
        try:
            encoder.encode(CONTENTS)
            send.send("no error")
        except RuntimeError as error:
            send.send(str(error))

    process = context.Process(target=child)
    process.start()
    assert receive.poll(60)
    assert receive.recv().startswith("this ImageEncoder belongs to process")
    process.join()
