"""The page of a snapshot: where it is, and what a browser finds in it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from audioclip_beam.pipeline.snapshots.commit import current_name, read_manifest
from audioclip_beam.pipeline.snapshots.manifest import Manifest
from audioclip_beam.pipeline.snapshots.run_directory import run_path


class Page(HTMLParser):
    """The tags and attributes of a page, and the text of each title in a chart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.titles: list[str] = []
        self._path: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._path.append(tag)
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")
        if tag == "title":
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._path and self._path.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._path and self._path[-1] == "title":
            self.titles[-1] += data


def page_of(output: Path) -> Path:
    return Path(run_path(str(output), str(current_name(str(output))))) / "report.html"


def manifest_of(output: Path) -> Manifest:
    manifest = read_manifest(str(output), str(current_name(str(output))))
    assert manifest is not None
    return manifest
