"""The contract that every head must pass: what model/head.py promises of a head, its settings and its encoder."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from audioclip_beam.model.audio.head import AUDIO
from audioclip_beam.model.audio.settings import AudioSettings
from audioclip_beam.model.checkpoint import extract
from audioclip_beam.model.fingerprint import PROVENANCE_PARTS, REQUIRED_PARTS
from audioclip_beam.model.head import BadRow, Column, Encoder, EncoderSettings, Flag, Head, Measure, ModelInfo
from audioclip_beam.model.image.head import IMAGE
from audioclip_beam.model.image.settings import MAX_IMAGE_BYTES, ImageSettings
from audioclip_beam.model.media import MediaHead, RowIdentity
from audioclip_beam.model.text.head import MAX_TEXT_BYTES, TEXT, TextSettings
from audioclip_beam.pipeline.flags import defaults, head_flags
from audioclip_beam.pipeline.schemas import REASONS, part_schema, reasons_of, rejected_schema, row_schema
from tests.support.beats import BEATS, BROKEN, BeatSettings, write_weights
from tests.support.picture_files import encoded, picture
from tests.support.plain_image import small_image_state
from tests.support.sound_files import sound_file

SCALED = {("image", "audio")}  # pairs of which a checkpoint below has the scale


@dataclass(frozen=True)
class Case:
    """A head with what a test needs of it.

    Attributes:
        head: The head.
        settings: Settings of an encoder that is quick to load.
        contents: Contents that it embeds, two of them equal.
        faulty: Contents that it cannot embed, with the reason.
        values: Values of a field, with the content that each one is.
        bad_values: Values of a field that are not a content, with the reason.
        limit: The most bytes of a content.
        variants: Settings with other vectors, one for each setting that decides vectors.
        files: The names of the flags of the settings' files, with their values.
        over_limit: The reason for a content of too many bytes, or None if the head has no limit.
        forbidding: Settings that forbid the faulty contents, if the head has such settings.
    """

    head: Head
    settings: EncoderSettings
    contents: Sequence[Any]
    faulty: Mapping[Any, str]
    values: Sequence[tuple[object, Any]]
    bad_values: Sequence[tuple[object, str]]
    limit: int
    variants: Mapping[str, EncoderSettings]
    files: Mapping[str, str]
    over_limit: str | None = "too long"
    forbidding: EncoderSettings | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options of `embed` that ask for the head, with its files."""
        return {**defaults(), **{flag.name: flag.default for flag in self.head.flags}, **self.files}


def _text_case(checkpoint: str, vocabulary: str) -> Case:
    settings = TextSettings(checkpoint, device="cpu", tokenizer_path=vocabulary, on_long="reject")
    return Case(
        head=TEXT,
        settings=settings,
        contents=["dog", "rain on a tin roof", "a choir singing in a cathedral", "dog", "Möwen über dem Hafen"],
        faulty={"dog " * 100: "too long"},
        values=[("a dog", "a dog"), (b"a dog", "a dog"), (["a", "dog"], "a, dog")],
        bad_values=[(None, "null text"), ("", "empty text"), (3, "wrong type"), (b"\xff", "not UTF-8")],
        limit=MAX_TEXT_BYTES,
        variants={
            "prompt": replace(settings, prompt="a sound of {}"),
            "on_long": replace(settings, on_long="truncate"),
            "normalize": replace(settings, normalize=True),
            "dtype": replace(settings, dtype="bfloat16"),
        },
        files={"checkpoint": checkpoint, "tokenizer_path": vocabulary},
        forbidding=replace(settings, on_long="error"),
    )


def _beats_case(checkpoint: str) -> Case:
    settings = BeatSettings(checkpoint, device="cpu")
    return Case(
        head=BEATS,
        settings=settings,
        contents=[b"\x01\x02", b"\x07" * 20, b"\x09\x00\x09", b"\x01\x02", b"\xc8"],
        faulty={bytes([1, BROKEN]): "broken beat"},
        values=[(b"\x01\x00", b"\x01\x00")],
        bad_values=[(None, "wrong type"), (b"", "silence"), ("x", "wrong type"), (b"\x01" * 65, "too long")],
        limit=64,
        variants={
            "accent": replace(settings, accent="first"),
            "normalize": replace(settings, normalize=True),
            "dtype": replace(settings, dtype="bfloat16"),
        },
        files={"checkpoint": checkpoint},
    )


def _image_case(checkpoint: str) -> Case:
    settings = ImageSettings(checkpoint, device="cpu")
    sizes = [(30, 20), (20, 30), (300, 250), (30, 20), (1, 1)]
    pictures = [encoded(picture(width, width, height)) for width, height in sizes]
    return Case(
        head=IMAGE,
        settings=settings,
        contents=pictures,
        faulty={b"not a picture": "not decodable"},
        values=[(pictures[0], pictures[0]), (bytearray(b"a"), b"a"), (memoryview(b"a"), b"a")],
        bad_values=_BAD_MEDIA,
        limit=MAX_IMAGE_BYTES,
        variants={
            "variant": replace(settings, variant="jina"),
            "normalize": replace(settings, normalize=True),
            "dtype": replace(settings, dtype="bfloat16"),
        },
        files={"checkpoint": checkpoint},
        over_limit="too large",
    )


def _audio_case(checkpoint: str) -> Case:
    settings = AudioSettings(checkpoint, device="cpu", window=10.0, hop=5.0)
    sounds = [sound_file(samples=samples, rate=rate) for samples, rate in ((4000, 44100), (1, 8000), (3000, 22050))]
    return Case(
        head=AUDIO,
        settings=settings,
        contents=[*sounds, sounds[0], sound_file("FLAC", samples=4000, channels=2)],
        faulty={b"not a sound": "not decodable", sound_file(samples=0): "too short"},
        values=[(sounds[0], sounds[0])],
        bad_values=_BAD_MEDIA,
        limit=sys.maxsize,
        variants={
            "variant": replace(settings, variant="jina", window=None, hop=None),
            "window": replace(settings, window=11.25),
            "hop": replace(settings, hop=None),
            "normalize": replace(settings, normalize=True),
            "dtype": replace(settings, dtype="bfloat16"),
        },
        files={"checkpoint": checkpoint},
        over_limit=None,
    )


_BAD_MEDIA = [(None, "missing field"), (b"", "empty file"), ("a.wav", "wrong type"), ({"path": "a"}, "wrong type")]


@pytest.fixture(scope="module", params=["text", "beats", "image", "audio"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Each head."""
    if request.param == "text":
        return _text_case(request.getfixturevalue("small_head"), str(request.getfixturevalue("vocabulary")))
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "image":
        torch.save(small_image_state(), folder / "small.pt")
        return _image_case(str(folder / "small.pt"))
    if request.param == "audio":
        extract("untrained", folder / "audio.safetensors", "audio")
        return _audio_case(str(folder / "audio.safetensors"))
    return _beats_case(write_weights(folder / "weights.npy"))


@pytest.fixture(scope="module")
def files(case: Case) -> Any:
    """The files of the settings, read."""
    return case.head.read(case.settings.file_paths())


@pytest.fixture(scope="module")
def loaded(case: Case, files: Any) -> Encoder:
    """The encoder of the settings."""
    return case.head.load(case.settings, files, "cpu")


@pytest.fixture
def encoder(loaded: Encoder) -> Encoder:
    """The encoder of the settings, without what another test wants to know of its progress."""
    loaded.on_progress = lambda items: None
    return loaded


def _measure(settings: EncoderSettings, head: Head, info: ModelInfo) -> Callable[[Sequence[Any]], Measure]:
    return head.measurer(settings, info, settings.file_paths().__getitem__)


def test_attributes_have_the_types_that_the_protocol_names(case: Case) -> None:
    """Names are words, columns are Columns, and the rest is numbers and tuples of words."""
    head = case.head
    for word in (head.name, head.item, head.items, head.unit, head.size_unit):
        assert isinstance(word, str)
        assert word == word.strip() != ""
    assert head.items != head.item
    for words in (head.reasons, head.provenance, head.version_parts):
        assert isinstance(words, tuple)
        assert all(isinstance(word, str) and word for word in words)
        assert len(set(words)) == len(words)
    assert isinstance(head.max_size, int)
    assert head.max_size > 0
    assert not set(head.reasons) & set(REASONS), "these are every head's"
    assert all(isinstance(flag, Flag) for flag in head.flags)


def test_columns_are_of_arrow_and_of_numpy_and_have_names_of_their_own(case: Case) -> None:
    """Part files, row batches and rejected rows can be described, and no name occurs twice."""
    head = case.head
    assert all(isinstance(column, Column) for column in (head.content, *head.model_columns))
    for column in head.model_columns:
        assert pa.from_numpy_dtype(np.dtype(column.type)) == pa.type_for_alias(column.type)
    for schema in (part_schema(head, 4), row_schema(head), rejected_schema(head)):
        assert len(set(schema.names)) == len(schema.names)
    assert rejected_schema(head).field(head.content.name).nullable
    names = [column.name for column in head.model_columns]
    assert head.size_column in [*names, *(column.name for column in head.content_columns)]
    assert part_schema(head, 4).field(head.size_column).type in (pa.int16(), pa.int32(), pa.float64())
    assert head.sort_by in (None, head.content.name), "rows are sorted before the model has seen them"
    assert not set(names) & {*row_schema(head).names, *rejected_schema(head).names}


def test_flags_have_names_of_their_own(case: Case) -> None:
    """Its flags differ from those that every head has; one of them names the field, and each file has one."""
    names = [flag.name for flag in case.head.flags]
    common = set(defaults()) - set(head_flags())
    assert len(set(names)) == len(names)
    assert not common & set(names)
    assert case.head.field_flag.removeprefix("--") in [flag.name for flag in case.head.flags if flag.kind == "list"]
    of_files = [flag.name for flag in case.head.flags if flag.is_file]
    assert {"checkpoint", *of_files} == set(case.files)
    assert len(case.settings.files) == len(case.files)
    for flag in case.head.flags:
        assert flag.help
        assert not flag.choices or flag.default in flag.choices
        assert not flag.fault or flag.default is None or flag.fault(str(flag.default)) == "", "the default is right"
        assert flag == head_flags().get(flag.name, (flag, []))[0], "a flag that two heads share is the same in both"


def test_default_options_give_settings_that_pass_their_check(case: Case) -> None:
    """Options of `embed` become settings; a type that no head computes in is refused."""
    options = case.options
    settings = case.head.settings(options)
    settings.check()
    assert type(settings) is type(case.settings)
    assert settings.file_paths() == case.settings.file_paths()
    assert case.head.content_limit(options) == case.limit
    assert case.head.omitted(options) <= {case.head.content.name}
    assert replace(settings, device="cuda:1") == case.head.settings({**options, "device": "cuda:1"})
    assert replace(settings, normalize=True) == case.head.settings({**options, "normalize": True})
    assert replace(settings, dtype="bfloat16") == case.head.settings({**options, "dtype": "bfloat16"})
    with pytest.raises(ValueError, match="float12.*float32, bfloat16"):
        replace(settings, dtype="float12").check()


def test_heads_and_settings_travel_to_workers(case: Case) -> None:
    """What is unpickled equals the original, and is the same key of a dict; other settings are not equal."""
    for value in (case.head, case.settings):
        copy = pickle.loads(pickle.dumps(value))
        assert copy == value
        assert hash(copy) == hash(value)
    assert all(settings != case.settings for settings in case.variants.values())
    assert case.head != object()


def test_settings_with_absolute_paths_name_the_same_files(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers may have another current directory."""
    monkeypatch.chdir(Path(case.settings.path).parent)
    relative = replace(case.settings, path=Path(case.settings.path).name)
    paths = relative.with_absolute_paths().file_paths()
    monkeypatch.chdir(tmp_path)
    assert paths == [str(Path(path).absolute()) for path in case.settings.file_paths()]


def test_an_encoder_is_described_without_being_loaded(
    case: Case, files: Any, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The description equals what the loaded encoder reports."""
    monkeypatch.setattr(type(case.head), "load", None)
    info = case.head.describe(case.settings, files)
    assert info == encoder.info
    assert info.head == case.head.name
    assert info.name == Path(case.settings.path).name
    assert info.dim > 0
    assert info.limit is None or info.limit > 0


def test_files_that_cannot_be_used_are_an_error_that_names_them(case: Case, tmp_path: Path) -> None:
    """It is a ValueError, whose path the caller replaces by the one that users gave."""
    bad = tmp_path / "bad"
    bad.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=str(bad)):
        case.head.read([str(bad)] * len(case.settings.files))


def test_the_fingerprint_has_the_parts_that_snapshots_need(case: Case, encoder: Encoder) -> None:
    """Those of every head, those that part files name, and the versions, all of them words."""
    parts = encoder.info.storing("float16").fingerprint_parts
    head = case.head
    assert {*REQUIRED_PARTS, *PROVENANCE_PARTS, *head.provenance, *head.version_parts} <= set(parts)
    assert all(isinstance(value, str) for value in parts.values())
    assert (parts["head"], parts["stored"]) == (head.name, "float16")
    assert (parts["dtype"], parts["normalize"]) == (case.settings.dtype, str(case.settings.normalize).lower())
    assert head.versions() == {name: parts[name] for name in head.version_parts}
    assert head.fingerprint_faults(parts) == []
    assert not set(head.provenance) & set(PROVENANCE_PARTS)


def test_every_setting_that_changes_vectors_changes_the_fingerprint(case: Case, files: Any, encoder: Encoder) -> None:
    """There is a variant for each setting but the device, the files and limits; the fingerprints of all differ."""
    without_effect = {"path", "device", "tokenizer_path", "max_image_bytes", "max_pixels"}
    assert {field.name for field in fields(case.settings)} - without_effect == set(case.variants)
    fingerprints = {encoder.info.fingerprint}
    for name, settings in case.variants.items():
        info = case.head.describe(settings, files)
        assert info.fingerprint_parts[name] != encoder.info.fingerprint_parts[name]
        fingerprints.add(info.fingerprint)
    assert len(fingerprints) == 1 + len(case.variants)
    elsewhere = case.head.describe(replace(case.settings, device="cuda:3"), files)
    assert elsewhere.fingerprint == encoder.info.fingerprint


def test_settings_are_found_again_by_the_fingerprint(case: Case, files: Any) -> None:
    """The parts and the paths of the files are enough to load the encoder of a snapshot."""
    for settings in (case.settings, *case.variants.values()):
        info = case.head.describe(settings, files)
        found = case.head.settings_of(info.fingerprint_parts, dict(case.files))
        assert found.file_paths() == settings.file_paths()
        assert case.head.describe(found, files).fingerprint == info.fingerprint


def test_the_canary_has_different_contents_that_can_be_embedded(case: Case, encoder: Encoder) -> None:
    """There are 16 contents with names, all different, each with a finite vector of its own."""
    canary = case.head.canary()
    assert len(canary) == 16
    assert all(isinstance(name, str) and name for name in canary)
    assert len(set(canary.values())) == len(canary)
    assert case.head.canary() == canary
    encoding = encoder.encode_rows(list(canary.values()))
    assert encoding.errors == {}
    assert np.isfinite(encoding.vectors).all()
    assert len(np.unique(encoding.vectors, axis=0)) == len(canary)
    if case.head.by_reference:
        return
    column = pa.array(canary.values(), row_schema(case.head).field(case.head.content.name).type)
    assert column.to_pylist() == list(canary.values())


def test_values_of_fields_become_contents(case: Case) -> None:
    """Any other value is a BadRow with one of the head's reasons, and never another error."""
    for value, content in case.values:
        assert case.head.parse(value, "field", case.limit) == content
    for value, reason in case.bad_values:
        with pytest.raises(BadRow) as caught:
            case.head.parse(value, "field", case.limit)
        assert caught.value.reason == reason
        assert caught.value.detail
        assert reason in reasons_of(case.head)
    if case.over_limit is None:
        return
    with pytest.raises(BadRow, match="(?<![0-9,])1( bytes|.*_bytes)") as caught:
        case.head.parse(case.contents[0] * 2, "field", 1)
    assert caught.value.reason == case.over_limit


def test_each_content_has_a_vector_and_columns_in_order(case: Case, encoder: Encoder) -> None:
    """Vectors are float32 [n, dim], and columns have the declared names and types, [n]."""
    contents = list(case.contents)
    encoding = encoder.encode_rows(contents)
    assert encoding.vectors.shape == (len(contents), encoder.info.dim)
    assert encoding.vectors.dtype == np.float32
    assert np.isfinite(encoding.vectors).all()
    assert encoding.errors == {}
    assert encoding.columns.keys() >= {column.name for column in case.head.model_columns}
    for column in case.head.model_columns:
        values = encoding.columns[column.name]
        assert values.shape == (len(contents),)
        assert values.dtype == np.dtype(column.type)
    assert (encoding.columns[case.head.size_column] > 0).all()
    backward = encoder.encode_rows(contents[::-1])
    np.testing.assert_allclose(backward.vectors[::-1], encoding.vectors, rtol=1e-3, atol=1e-5)
    for name, values in encoding.columns.items():
        np.testing.assert_array_equal(backward.columns[name][::-1], values)


def test_equal_contents_have_equal_vectors(case: Case, encoder: Encoder) -> None:
    """In one call they are the same numbers; alone they differ by rounding at most. Others have other vectors."""
    contents = list(case.contents)
    vectors = encoder.encode_rows(contents).vectors
    for place, content in enumerate(contents):
        np.testing.assert_array_equal(vectors[place], vectors[contents.index(content)])
        alone = encoder.encode_rows([content]).vectors[0]
        np.testing.assert_allclose(alone, vectors[place], rtol=1e-3, atol=1e-5)
    assert len(np.unique(vectors, axis=0)) == len(set(contents)) < len(contents)


def test_settings_do_what_their_names_say(case: Case, files: Any, encoder: Encoder) -> None:
    """Vectors have length 1 with `normalize`, and are nearly the same in a smaller type."""
    contents = list(case.contents)
    plain = encoder.encode_rows(contents).vectors
    unit, small = (
        case.head.load(case.variants[name], files, "cpu").encode_rows(contents).vectors
        for name in ("normalize", "dtype")
    )
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, plain / lengths, rtol=1e-3, atol=1e-5)
    assert (np.linalg.norm(small - plain, axis=1) < 0.1 * lengths[:, 0]).all()
    assert not np.array_equal(small, plain)


def test_a_content_that_cannot_be_embedded_is_an_error_at_its_place(case: Case, encoder: Encoder) -> None:
    """Its vector is NaN and its reason one of the head's; the others are as without it."""
    for faulty, reason in case.faulty.items():
        contents = [case.contents[0], faulty, *case.contents[1:], faulty]
        encoding = encoder.encode_rows(contents)
        assert sorted(encoding.errors) == [1, len(contents) - 1]
        for place, error in encoding.errors.items():
            assert error.reason == reason
            assert reason in reasons_of(case.head)
            assert error.detail
            assert np.isnan(encoding.vectors[place]).all()
        good = [place for place in range(len(contents)) if place not in encoding.errors]
        expected = encoder.encode_rows(list(case.contents))
        np.testing.assert_allclose(encoding.vectors[good], expected.vectors, rtol=1e-3, atol=1e-5)
        for name, values in expected.columns.items():
            np.testing.assert_array_equal(encoding.columns[name][good], values)
        assert encoding.work.units == expected.work.units, "the model does not read it"
        alone = encoder.encode_rows([faulty])
        assert alone.errors[0].reason == reason
        assert len(alone.vectors) == 1


def test_no_contents_give_no_rows(case: Case, encoder: Encoder) -> None:
    encoding = encoder.encode_rows([])
    assert encoding.vectors.shape == (0, encoder.info.dim)
    assert encoding.vectors.dtype == np.float32
    for column in case.head.model_columns:
        values = encoding.columns[column.name]
        assert (values.shape, values.dtype) == ((0,), np.dtype(column.type))
    assert encoding.errors == {}
    assert (encoding.work.items, encoding.work.units) == (0, 0)


def test_the_cost_of_a_call_is_counted_and_its_progress_reported(case: Case, encoder: Encoder) -> None:
    """Equal contents count once, and progress adds up to the items."""
    progress = list[int]()
    encoder.on_progress = progress.append
    contents = [*case.contents, *case.faulty]
    work = encoder.encode_rows(contents).work
    assert work.items == sum(progress) == len(set(case.contents))
    assert work.units > 0
    assert work.micro_batches > 0
    assert work.seconds > 0
    limit = encoder.info.limit
    sizes = encoder.encode_rows(sorted(set(case.contents))).columns[case.head.size_column]
    if case.head.size_unit == case.head.unit:
        assert work.units == int(np.minimum(sizes, limit).sum() if limit else sizes.sum())
    assert all(isinstance(amount, int) for amount in work.counts().values())


def test_measuring_agrees_with_embedding(case: Case, encoder: Encoder) -> None:
    """`plan` tells units and rejected rows without the model."""
    contents = [*case.contents, *case.faulty, *case.contents]
    measure = _measure(case.settings, case.head, encoder.info)
    measured, encoding = measure(contents), encoder.encode_rows(contents)
    assert measured.units == encoding.work.units
    assert np.flatnonzero(measured.rejected).tolist() == sorted(encoding.errors)
    assert measured.rejected.dtype == measured.forbidden.dtype == np.bool_
    assert len(measured.forbidden) == len(contents)
    assert not measured.forbidden.any()
    nothing = measure([])
    assert (nothing.units, len(nothing.rejected), len(nothing.forbidden)) == (0, 0, 0)


def test_settings_may_forbid_rows_by_a_column(case: Case, files: Any) -> None:
    """A run must not have a row in which that column is true; measuring finds it, and the message has all that is known."""
    assert case.settings.forbidden is None
    settings = case.forbidding
    if settings is None:
        return
    contents = [*case.contents, *case.faulty]
    encoder = case.head.load(settings, files, "cpu")
    encoding, measured = (
        encoder.encode_rows(contents),
        _measure(settings, case.head, encoder.info)(contents),
    )
    assert Column(str(settings.forbidden), "bool") in case.head.model_columns
    forbidden = encoding.columns[str(settings.forbidden)]
    assert forbidden.tolist() == [content in case.faulty for content in contents]
    assert measured.forbidden.tolist() == forbidden.tolist()
    assert not measured.rejected.any()
    place = int(forbidden.argmax())
    row = {"shard": "a.jsonl", "row": 7, "id": "x", case.head.content.name: contents[place]}
    row |= {name: values[place] for name, values in encoding.columns.items()}
    assert "a.jsonl, row 7: " in settings.describe_forbidden(row)
    assert settings.describe_forbidden_rows(1234).startswith("1,234 rows")


def test_calls_go_where_the_pipeline_wants_them(case: Case, encoder: Encoder) -> None:
    """On a CPU all calls of torch are made in one thread of the process; an encoder without torch may ignore this."""
    calls = list[object]()

    def run_call(call: Callable[[], Any]) -> Any:
        calls.append(call)
        return call()

    expected = encoder.encode_rows(list(case.contents)).vectors
    encoder.run_call = run_call
    try:
        vectors = encoder.encode_rows(list(case.contents)).vectors
    finally:
        encoder.run_call = None
    np.testing.assert_array_equal(vectors, expected)
    assert len(calls) == (encoder.device_type == "cpu")


def test_columns_of_an_encoder_pass_their_own_check(case: Case, encoder: Encoder) -> None:
    """`validate` finds no fault in what the encoder gives, batch by batch, and finds sizes of nothing."""
    check = case.head.column_check(encoder.info.storing("float32").fingerprint_parts)
    columns = encoder.encode_rows(list(case.contents)).columns
    for number, column in enumerate(case.head.content_columns):
        columns[column.name] = np.array([values[number] for values in _content_values(case)], column.type)
    for _ in range(2):
        assert not any(faulty.any() for faulty, _ in check.add(columns))
    faults, summary = check.finish()
    assert faults == []
    assert summary
    nothing = {name: np.zeros_like(values) for name, values in columns.items()}
    found = [(faulty, what) for faulty, what in check.add(nothing) if faulty.any()]
    assert found
    assert all(faulty.shape == (len(case.contents),) and what for faulty, what in found)


def _content_values(case: Case) -> Iterator[tuple[Any, ...]]:
    """Yield the values of the content columns of each content."""
    head = cast(MediaHead, case.head)
    for content in case.contents:
        (part,) = head.parts(BytesIO(content), len(content), bytes(16), case.settings)
        yield part.values


def test_pages_can_show_contents(case: Case) -> None:
    """By nothing, a player, or a small picture, which is made of every content that can be embedded, and of no other."""
    assert case.head.preview in ("", "picture", "player")
    if case.head.preview == "player":
        assert {"start", "end", "duration"} <= {column.name for column in case.head.content_columns}
    if case.head.preview != "picture":
        return
    head = cast(MediaHead, case.head)
    for content in case.contents:
        small = head.thumbnail(content, 1000)
        assert len(small) <= 1000
        assert small[:4] + small[8:12] == b"RIFFWEBP"
    for content, reason in case.faulty.items():
        with pytest.raises(BadRow) as caught:
            head.thumbnail(content, 1000)
        assert caught.value.reason == reason


def test_hashes_follow_from_the_files_of_rows(case: Case) -> None:
    """`validate` finds no fault in rows as readers make them, and finds a hash of another file."""
    if not case.head.by_reference:
        return
    head, digest = cast(MediaHead, case.head), bytes(range(16))
    content = case.contents[0]
    (part,) = head.parts(BytesIO(content), len(content), digest, case.settings)
    columns = {
        column.name: np.array([value], column.type)
        for column, value in zip(head.content_columns, part.values, strict=True)
    }
    for found, faulty in ((digest, False), (bytes(16), True)):
        rows = RowIdentity([f"id{part.fragment}"], [part.hash], [found])
        assert any(wrong.any() for wrong, _ in head.row_faults(rows, columns, case.options)) == faulty


def test_work_is_described_in_the_words_of_the_head(case: Case, encoder: Encoder) -> None:
    work = encoder.encode_rows(list(case.contents)).work
    assert case.head.describe_work(work).startswith(
        f"{work.items:,} {case.head.items}, {work.units:,} {case.head.unit}"
    )


def test_a_missing_scale_is_an_error_for_users(case: Case, files: Any) -> None:
    """Two vectors of one head have none, and not every checkpoint has them all."""
    for other in ("audio", case.head.name):
        if (case.head.name, other) not in SCALED:
            with pytest.raises(ValueError, match="scale"):
                case.head.logit_scale(files, other)
        else:
            assert 1 <= case.head.logit_scale(files, other) <= 100
