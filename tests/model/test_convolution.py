"""Convolutions of the networks of images and sounds: fused ones agree with plain ones, and are not used if they do not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from audioclip_beam.model import convolution, load_checkpoint
from audioclip_beam.model.audio.tower import AudioTower
from audioclip_beam.model.image.tower import ImageTower
from tests.support.plain_audio import difference
from tests.support.plain_image import small_image_state

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_memo() -> Iterator[None]:
    convolution.fused_works.cache_clear()
    yield
    convolution.fused_works.cache_clear()


def image_tower() -> ImageTower:
    """Return a small network of images."""
    return ImageTower(small_image_state(), device=CPU, dtype=torch.float32)


def picture() -> torch.Tensor:
    """Return an input of it."""
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 4 - 2
    return x.contiguous(memory_format=torch.channels_last)


def test_without_fused_convolutions_images_have_the_same_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """If torch lacks them, plain ones give the same vectors."""
    expected = image_tower()(picture()).numpy()
    monkeypatch.setattr(convolution, "fused_works", lambda _: False)
    assert difference(image_tower()(picture()).numpy(), expected) < 5e-6


@pytest.mark.slow
def test_without_fused_convolutions_sounds_have_the_same_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    state = load_checkpoint("untrained", "audio").state
    x = torch.rand(1, 3, 341, 7, generator=torch.Generator().manual_seed(7)) * 60 - 80
    expected = AudioTower(state, device=CPU, dtype=torch.float32)(x).numpy()
    monkeypatch.setattr(convolution, "fused_works", lambda _: False)
    assert difference(AudioTower(state, device=CPU, dtype=torch.float32)(x).numpy(), expected) < 5e-6


@pytest.mark.parametrize("method", ["__call__", "add"])
def test_fused_convolutions_that_are_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A torch whose operators compute something else is found by a small example."""
    compute = getattr(convolution.FusedConvolution, method)
    monkeypatch.setattr(convolution.FusedConvolution, method, lambda self, *inputs: compute(self, *inputs).mul_(1.001))
    assert not convolution.fused_works(torch.float32)
    weight = torch.ones(4, 4, 1, 1)
    assert type(convolution.convolution(weight, torch.zeros(4))) is convolution.Convolution


def test_a_torch_without_the_operators_uses_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> torch.Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(convolution.FusedConvolution, "reordered", missing)
    assert not convolution.fused_works(torch.float32)


def test_without_products_in_bfloat16_rounded_weights_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a CPU that computes in float32 gives nearly the vectors of one that has such products, and no others."""
    exact = image_tower()(picture()).numpy()
    monkeypatch.setattr(convolution, "fused_works", lambda dtype: False)
    tower = ImageTower(small_image_state(), device=CPU, dtype=torch.bfloat16)
    assert tower.dtype == torch.float32
    assert 1e-5 < difference(tower(picture()).numpy(), exact) < 0.02


@pytest.mark.parametrize(("width", "kernel"), [(1, 3), (2, 3), (1, 7), (2, 1), (3, 3)])
def test_narrow_inputs_in_bfloat16(width: int, kernel: int) -> None:
    """oneDNN with AMX returned unwritten memory for results that are one column wide: sounds of under 0.4 seconds."""
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(1, 128, 22, width, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(128, 4, kernel, kernel, generator=generator).bfloat16() / 8
    geometry = 2, (kernel // 2, kernel // 2), 32
    fused = convolution.convolution(weight, torch.zeros(128).bfloat16(), *geometry)
    expected = convolution.Convolution(weight.float(), torch.zeros(128), *geometry)(x.float())
    packed = fused(x, {})
    assert packed.is_contiguous(memory_format=torch.channels_last)
    for actual in (fused(x), packed):
        torch.testing.assert_close(actual.float(), expected, rtol=0.01, atol=0.02)


@pytest.mark.parametrize(("count", "groups"), [(1, 16), (2, 8), (8, 2), (5, 16), (64, 1)])
def test_merged_groups_are_the_same_convolution(count: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(count)
    x, weight = torch.randn(1, 64, 9, 7, generator=generator), torch.randn(32, 4, 3, 3, generator=generator)
    merged, fewer = convolution.merge_groups(weight, 16, count)
    assert fewer == groups
    plain, actual = (
        convolution.Convolution(w, torch.zeros(32), groups=g)(x) for w, g in ((weight, 16), (merged, groups))
    )
    torch.testing.assert_close(actual, plain, rtol=1e-5, atol=2e-5)
