"""An output inside of another one, or around one, is refused before anything is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.snapshots.snapshot import check_not_nested
from tests.support import object_stores
from tests.support.object_stores import Store
from tests.support.stub import StubHead

store = object_stores.store

RUN = "20260101T000000Z-01234567"


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current directory, with a published output `a/out`, one of a run that failed, and links."""
    (tmp_path / f"a/out/snapshots/{RUN}").mkdir(parents=True)
    (tmp_path / "a/out/current.json").write_text("{}")
    (tmp_path / f"a/failed/snapshots/{RUN}").mkdir(parents=True)
    (tmp_path / "a/snapshots-of-others/snapshots/monday").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/out")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/link").symlink_to("../a/out")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("a/out/new", "is inside of {}/a/out, which has snapshots of its own"),
        ("a/out/new/", "is inside of {}/a/out, "),
        ("a/out/deep/er/new", "is inside of {}/a/out, "),
        ("a/out/snapshots", "is inside of {}/a/out, "),
        (f"a/out/snapshots/{RUN}", "is inside of {}/a/out, "),
        ("a/failed/new", "is inside of {}/a/failed, "),
        ("link/new", "is inside of {}/a/out, "),
        ("b/../a/out/./new", "is inside of {}/a/out, "),
        ("a", "contains a/(out|failed), which has snapshots of its own"),
        ("a/", "contains a/(out|failed), "),
        ("b", "contains b/link, "),
        ("a/out", None),
        ("a/out/", None),
        ("link", None),
        ("a/failed", None),
        ("a/new", None),
        ("a/snapshots-of-others/new", None),
        ("a/snapshots-of-others", None),
        (".", "contains ./link, "),
        ("new/er", None),
    ],
)
def test_outputs_are_not_nested(outputs: Path, output: str, error: str | None) -> None:
    """By paths without links; an output that is used again, or beside another one, is right."""
    before = sorted(outputs.rglob("*"))
    if error is None:
        check_not_nested(output)
    else:
        with pytest.raises(ValueError, match=f"^--output {output} {error.format(outputs)}"):
            check_not_nested(output)
    assert sorted(outputs.rglob("*")) == before


def test_a_run_is_refused(outputs: Path) -> None:
    (outputs / "a.txt").write_text("dog\n")
    with pytest.raises(ValueError, match=r"is inside of .*: name a directory outside of that$"):
        EmbedCorpus(EmbedOptions(input=["a.txt"], output="a/out/new"), StubHead())
    assert not os.path.exists("a/out/new")


def test_outputs_on_an_object_store(store: Store) -> None:
    """Those with a current snapshot; a bucket may be one."""
    store.put("a/out/current.json", b"{}")
    store.put(f"a/out/snapshots/{RUN}/manifest.json", b"{}")
    for output in ("a/out/new", "a/out/deep/er/new"):
        with pytest.raises(ValueError, match=f"is inside of {store.url}/a/out, "):
            check_not_nested(f"{store.url}/{output}")
    with pytest.raises(ValueError, match=f"contains {store.url}/a/out, which has snapshots of its own"):
        check_not_nested(f"{store.url}/a/")
    for output in ("a/out", "a/out/", "a/other", "new"):
        check_not_nested(f"{store.url}/{output}")
    store.put("current.json", b"{}")
    with pytest.raises(ValueError, match=f"is inside of {store.url}, "):
        check_not_nested(f"{store.url}/new")
