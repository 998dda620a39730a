"""ImageEncoder: the original's numbers, for the released shapes and the weights of "untrained"."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
import torch

from audioclip_beam.model import ImageEncoder, load_checkpoint
from audioclip_beam.model.checkpoint import Checkpoint
from audioclip_beam.model.image.settings import ImageSettings
from audioclip_beam.model.image.shapes import image_shapes
from audioclip_beam.model.tensors import SCALES
from tests.support.paths import DATA
from tests.support.plain_image import relative

GREY16 = "grey16_120x130.png"  # its golden shows that Pillow's conversion makes it white, and ours does not


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint("untrained", "image")


@pytest.fixture(scope="module")
def goldens() -> dict[str, npt.NDArray[np.float32]]:
    with np.load(DATA / "images.npz") as file:
        return {name: file[name] for name in file.files if name.startswith("vectors")}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The encoded pictures by name."""
    with np.load(DATA / "images.npz") as file:
        content, offsets = file["files"].tobytes(), file["offsets"]
        names = json.loads(str(file["names"]))
    return {name: content[start:end] for name, start, end in zip(names, offsets, offsets[1:], strict=False)}


@pytest.mark.slow
def test_the_originals_vectors(
    checkpoint: Checkpoint, goldens: dict[str, npt.NDArray[np.float32]], files: dict[str, bytes]
) -> None:
    """Every vector equals the original's within 2e-5, pictures with an orientation those that were turned upright."""
    vectors = ImageEncoder(checkpoint, ImageSettings("untrained", device="cpu")).encode(files.values())
    expected, upright = goldens["vectors_antialias"], iter(goldens["vectors_exif_transposed_antialias"])
    expected = np.stack(
        [next(upright) if name.startswith("exif") else v for name, v in zip(files, expected, strict=True)]
    )
    chosen = [name != GREY16 for name in files]
    assert vectors.dtype == np.float32
    assert relative(vectors, expected)[chosen].max() < 2e-5


@pytest.mark.slow
def test_the_vectors_of_jinas_executor(
    checkpoint: Checkpoint, goldens: dict[str, npt.NDArray[np.float32]], files: dict[str, bytes]
) -> None:
    """variant="jina" resizes without antialiasing and ignores EXIF data."""
    vectors = ImageEncoder(checkpoint, ImageSettings("untrained", device="cpu", variant="jina")).encode(files.values())
    chosen = [name != GREY16 for name in files]
    assert relative(vectors, goldens["vectors_tensor"])[chosen].max() < 2e-5


def test_a_few_of_the_originals_vectors(
    checkpoint: Checkpoint, goldens: dict[str, npt.NDArray[np.float32]], files: dict[str, bytes]
) -> None:
    """The same for four pictures: a photo, a wide one, a palette with transparency, and one with an orientation."""
    names = ["rgb_640x480.jpg", "wide_1000x30.jpg", "palette_transparent_160x200.gif", "exif6_320x200.jpg"]
    vectors = ImageEncoder(checkpoint, ImageSettings("untrained", device="cpu")).encode([files[n] for n in names])
    expected = [goldens["vectors_antialias"][list(files).index(name)] for name in names[:-1]]
    assert relative(vectors, np.stack([*expected, goldens["vectors_exif_transposed_antialias"][0]])).max() < 2e-5


@pytest.mark.slow
def test_bfloat16(checkpoint: Checkpoint, goldens: dict[str, npt.NDArray[np.float32]], files: dict[str, bytes]) -> None:
    """In bfloat16 vectors equal the original's within 0.05."""
    chosen = [place for place, name in enumerate(files) if name != GREY16 and not name.startswith("exif")][::3]
    contents = list(files.values())
    encoder = ImageEncoder(checkpoint, ImageSettings("untrained", device="cpu", dtype="bfloat16"))
    vectors = encoder.encode([contents[place] for place in chosen])
    assert relative(vectors, goldens["vectors_antialias"][chosen]).max() < 0.05


@pytest.mark.slow
def test_all_products_in_bfloat16(
    checkpoint: Checkpoint,
    goldens: dict[str, npt.NDArray[np.float32]],
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same for one picture on a CPU without such products, which would else compute in float32 with rounded weights."""
    monkeypatch.setattr("audioclip_beam.model.image.tower.computed_dtype", lambda device, dtype: dtype)
    encoder = ImageEncoder(checkpoint, ImageSettings("untrained", device="cpu", dtype="bfloat16"))
    place = list(files).index("rgb_640x480.jpg")
    difference = relative(encoder.encode([files["rgb_640x480.jpg"]]), goldens["vectors_antialias"][[place]])[0]
    assert 1e-3 < difference < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.05), ("float16", 0.05)])
def test_goldens_on_a_gpu(
    checkpoint: Checkpoint,
    goldens: dict[str, npt.NDArray[np.float32]],
    files: dict[str, bytes],
    dtype: str,
    tolerance: float,
) -> None:
    """A CUDA device gives the original's vectors in all types."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    chosen = [place for place, name in enumerate(files) if name != GREY16 and not name.startswith("exif")]
    contents = list(files.values())
    encoder = ImageEncoder(checkpoint, ImageSettings("untrained", device="cuda", dtype=dtype))
    vectors = encoder.encode([contents[place] for place in chosen])
    assert relative(vectors, goldens["vectors_antialias"][chosen]).max() < tolerance


def test_shapes_built_in_code_are_the_released_ones(checkpoint: Checkpoint) -> None:
    """image_shapes are the names and shapes of the released file's image head, but for the counters of training."""
    keys = json.loads((DATA / "keys.json").read_text())
    released = {
        name: tuple(shape) for name, (shape, dtype) in keys.items() if name.startswith("visual.") and dtype != "int64"
    }
    assert image_shapes() == released
    assert {name: tuple(t.shape) for name, t in checkpoint.state.items()} == {**released, **dict.fromkeys(SCALES, ())}
    assert checkpoint.untrained
    assert checkpoint.notice == ""
