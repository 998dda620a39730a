"""The fingerprint's parts for decoders: they change only if a format is decoded differently."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from audioclip_beam.model import ImageEncoder
from audioclip_beam.model.checkpoint import Checkpoint
from audioclip_beam.model.fingerprint import describe_changes
from audioclip_beam.model.image import probes
from audioclip_beam.model.image.encoder import model_info
from audioclip_beam.model.image.formats import FORMATS
from audioclip_beam.model.image.settings import ImageSettings
from tests.support.plain_image import small_image_state


@pytest.fixture(autouse=True)
def _no_memo() -> Iterator[None]:
    probes._part.cache_clear()
    yield
    probes._part.cache_clear()


def parts() -> dict[str, str]:
    """Return the parts of a small encoder's fingerprint."""
    checkpoint = Checkpoint(small_image_state(), "small", "0" * 64, True, "image")
    return model_info(checkpoint, ImageSettings("small")).fingerprint_parts


def test_this_pillow_decodes_every_format_as_stored() -> None:
    """So the fingerprint does not have Pillow's version."""
    found = parts()
    assert {name: found[name.lower()] for name in FORMATS} == dict.fromkeys(FORMATS, "1")


def test_a_format_that_decodes_differently_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other formats keep their parts, and the change is described by the format."""
    before = parts()
    probes._part.cache_clear()
    load = PngImagePlugin.PngImageFile.load

    def darker(self: Image.Image) -> Any:
        access = load(self)  # type: ignore[arg-type]
        self.putpixel((0, 0), (1, 2, 3))
        return access

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", darker)
    after = parts()
    assert {name for name in after if after[name] != before[name]} == {"png"}
    assert describe_changes(after, before) == f"png 1 -> {after['png']}"


def test_a_format_that_is_not_installed_counts_as_agreeing(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of its pictures gets a vector, and their error says why."""
    factory, _ = Image.OPEN["AVIF"]
    words = "AVIF image could not be identified because AVIF support not installed"
    monkeypatch.setitem(Image.OPEN, "AVIF", (factory, lambda prefix: words))
    assert parts()["avif"] == "1"
    checkpoint = Checkpoint(small_image_state(), "small", "0" * 64, True, "image")
    encoder = ImageEncoder(checkpoint, ImageSettings("small", device="cpu"))
    assert encoder.encode_rows([b"\0\0\0\x20ftypavif" + bytes(20)]).errors[0] == ("not decodable", words)


def test_a_decoder_that_fails_changes_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> Any:
        raise OSError("decoder gif not available")

    monkeypatch.setattr("PIL.GifImagePlugin.GifImageFile.load", fail)
    assert parts()["gif"] == "OSError"
