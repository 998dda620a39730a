"""A headless Chromium that opens a page of this machine: its screenshot, its console and what a script measures in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=5000",
    "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND",
]  # fmt: skip

_MEASURE = """
const texts = [...document.querySelectorAll("svg text")];
const boxes = texts.map(text => [text.ownerSVGElement, text.getBoundingClientRect()]);
const overlap = (a, b) => a[0] === b[0] && a[1].left < b[1].right - 1 && b[1].left < a[1].right - 1
  && a[1].top < b[1].bottom - 3 && b[1].top < a[1].bottom - 3;
const charts = [...document.querySelectorAll("svg")].map(chart => chart.getBoundingClientRect());
parent.postMessage(JSON.stringify({
  window: innerWidth,
  content: document.documentElement.scrollWidth,
  charts: charts.map(chart => [Math.round(chart.width), Math.round(chart.height)]),
  overlaps: texts.filter((_, i) => boxes.slice(i + 1).some(box => overlap(boxes[i], box))).map(text => text.textContent),
  outside: boxes.filter(([chart, box]) => box.right > chart.getBoundingClientRect().right + 8
    || box.left < chart.getBoundingClientRect().left - 8).length,
  covered: [...document.querySelectorAll("svg rect")].filter(rect => {
    const box = rect.getBoundingClientRect();
    return document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2) !== rect;
  }).map(rect => rect.textContent),
  smallest: Math.min(...texts.map(text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)),
  inks: [...new Set(texts.map(text => getComputedStyle(text).fill))],
  surface: getComputedStyle(document.querySelector("section")).backgroundColor,
}), "*");
"""
# Chromium has no window narrower than 500 pixels, except for screenshots.
_FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><body>
<script>onmessage = event => { document.body.dataset.measures = event.data; };</script>
<iframe src="measured.html" width="WIDTH" height="HEIGHT" frameborder="0"></iframe>"""


@dataclass(frozen=True)
class ShownPage:
    """What Chromium made of a page."""

    picture: Path
    console: list[str]
    measures: dict[str, Any]


def show_page(page: Path, folder: Path, *, width: int, height: int = 2600, dark: bool = False) -> ShownPage:
    """Open `page` in a window of this size and return its screenshot and console, and the measures of a copy of it.

    The copy, which has a script for the measures and no policy that forbids scripts, is opened from `folder`.
    """
    flags = [*_FLAGS, f"--window-size={width},{height}", f"--blink-settings=preferredColorScheme={'10'[dark]}"]
    picture = folder / f"{width}-{'dark' if dark else 'light'}.png"
    shown = _run([*flags, f"--screenshot={picture}", page.as_uri()], folder)
    text = re.sub('<meta http-equiv="Content-Security-Policy".*?>', "", page.read_text(encoding="utf-8"))
    copy = folder / "measured.html"
    copy.write_text(text.replace("</body>", f"<script>{_MEASURE}</script></body>"), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(_FRAME.replace("WIDTH", str(width)).replace("HEIGHT", str(height)), encoding="utf-8")
    measured = _run([*flags, "--dump-dom", frame.as_uri()], folder)
    values = re.search('data-measures="(.*?)"', measured.stdout)
    assert values, measured.stderr
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    return ShownPage(picture, console, json.loads(unescape(values[1])))


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two CSS colors of the form rgb(...), as WCAG 2 defines it."""
    lights = sorted(_luminance(color) for color in (first, second))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), *arguments[:-1], f"--user-data-dir={folder / 'profile'}", arguments[-1]]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
