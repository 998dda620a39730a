"""Strings that stand more than once among any number of them: put down on disk and sorted there, by SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

MEMORY_KIB = 32 * 1024


class Repeats:
    """Finds what was added more than once; its memory does not grow with what it holds, the file at `path` does."""

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        # The file is nobody's after this process: nothing of it need survive a crash.
        for setting in ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", f"cache_size=-{MEMORY_KIB}"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE seen (value BLOB NOT NULL)")

    def add(self, values: Iterable[bytes]) -> None:
        """Note some more values."""
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO seen VALUES (?)", ((value,) for value in values))
        self._database.execute("COMMIT")

    def found(self, examples: int) -> tuple[int, list[bytes]]:
        """(how many values stand more than once, the first few of them in their order)."""
        self._database.execute("CREATE TEMP TABLE twice AS SELECT value FROM seen GROUP BY value HAVING count(*) > 1")
        (count,) = self._database.execute("SELECT count(*) FROM twice").fetchone()
        rows = self._database.execute("SELECT value FROM twice ORDER BY value LIMIT ?", (examples,)).fetchall()
        return int(count), [bytes(value) for (value,) in rows]

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
