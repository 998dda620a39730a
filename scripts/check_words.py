#!/usr/bin/env python3
"""Check the project's language against scripts/words.txt: print `file:line: word -> what to write`, exit 1 on any hit.

    scripts/check_words.py [FILE ...]

Without FILE it checks every file that git tracks or would add: in Python comments, docstrings, other strings and names, in
other files the whole text.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
WORDS = Path(__file__).with_name("words.txt")
FILES = ["*.py", "*.md", "*.sh", "*.toml", "*.yaml", "*.ipynb", "*.html", "*.css", "*Dockerfile"]


class Word(NamedTuple):
    """A line of words.txt; `allowed` are globs of the paths in which the word is right."""

    pattern: re.Pattern[str]
    advice: str
    allowed: list[str]
    in_names: bool


def read_words(path: Path = WORDS) -> list[Word]:
    """Return the words; a space in a pattern matches any white space, line breaks too. Raise ValueError for a bad line."""
    words = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        regex, *columns = re.split("\t+", line)
        if len(columns) not in (1, 2):
            raise ValueError(f"{path}:{number}: expected `regex<TAB>advice[<TAB>globs]`, found {line!r}")
        plain = regex.removeprefix("name:").replace(" ", r"\s+")
        pattern = re.compile(plain, re.IGNORECASE)
        words.append(Word(pattern, columns[0], " ".join(columns[1:]).split(), regex.startswith("name:")))
    return words


def texts(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield (first line, text, whether it is a name) of a file; comments on lines that follow each other are one text."""
    if path.suffix != ".py":
        yield 1, path.read_text(encoding="utf-8"), False
        return
    comment, first, last = "", 0, 0
    with path.open("rb") as handle:
        for token in tokenize.tokenize(handle.readline):
            kind, line = tokenize.tok_name[token.type], token.start[0]
            if kind == "COMMENT" and line == last + 1:
                comment, last = f"{comment}\n{token.string[1:]}", line
            elif kind == "COMMENT":
                yield first, comment, False
                comment, first, last = token.string[1:], line, line
            elif kind in ("STRING", "FSTRING_MIDDLE", "NAME"):
                yield line, token.string, kind == "NAME"
    yield first, comment, False


def check(path: Path, name: str, words: list[Word]) -> Iterator[tuple[int, str, str]]:
    """Yield (line, what was found, advice) for each hit in the file at `path`, whose name in the project is `name`."""
    words = [word for word in words if not any(fnmatch(name, glob) for glob in word.allowed)]
    for first, text, is_name in texts(path):
        for word in words:
            for match in word.pattern.finditer(text) if word.in_names == is_name else []:
                if not is_name or match[0] == text:
                    yield first + text.count("\n", 0, match.start()), " ".join(match[0].split()), word.advice


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z", "--", *FILES]
    files = parser.parse_args(argv).files
    files = files or [ROOT / name for name in subprocess.check_output(command, cwd=ROOT, text=True).split("\0")]
    words, status = read_words(), 0
    for path in [path.resolve() for path in files if path.is_file()]:
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
        for line, found, advice in sorted(set(check(path, name, words))):
            print(f"{name}:{line}: {found} -> {advice}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
