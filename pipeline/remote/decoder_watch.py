"""Name the files that a process decodes when it ends: decoders are written in C, and a damaged file may end the process.

Each worker has a small process that waits for its end. What is decoded is noted in memory that both share.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from .worker_reports import RunReports

SLOTS, SLOT_BYTES = 256, 1024  # files that are decoded at the same time; of a path, with its length in front

BEGINNING = "audioclip: error: the process ended while it decoded "
REMEDY = "leave it out, or convert it to another format, and run again, which reuses what is finished"

# Reads no byte if the process has ended otherwise than by the interpreter's exit.
_PROGRAM = f"""
import json, mmap, sys
memory, slots = mmap.mmap(int(sys.argv[1]), {SLOTS * SLOT_BYTES}), range(0, {SLOTS * SLOT_BYTES}, {SLOT_BYTES})
if not sys.stdin.buffer.read(1):
    sizes = [int.from_bytes(memory[slot : slot + 2], "big") for slot in slots]
    found = [memory[slot + 2 : slot + 2 + size].decode("utf-8", "replace") for slot, size in zip(slots, sizes) if size]
    if names := sorted(set(found)):
        names = ", ".join(names).translate({{n: "?" for n in (*range(32), *range(127, 160))}})
        print(f"{BEGINNING}{{names}}: {REMEDY}", file=sys.stderr, flush=True)
        sys.path[:] = json.loads(sys.argv[3])
        if sys.argv[2]:
            from audioclip_beam.pipeline.remote.worker_reports import RunReports
            RunReports(sys.argv[2]).report_end(f"a worker ended while it decoded {{names}}: {REMEDY}")
"""


class _Watch:
    """The process that waits for the end of this one, and what it is to name."""

    def __init__(self, directory: str | None) -> None:
        self.directory, self._free = directory, deque(range(0, SLOTS * SLOT_BYTES, SLOT_BYTES))
        with tempfile.TemporaryFile() as file:
            file.truncate(SLOTS * SLOT_BYTES)
            self._memory = mmap.mmap(file.fileno(), SLOTS * SLOT_BYTES)
            arguments = [str(file.fileno()), directory or "", json.dumps(sys.path)]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[file.fileno()],
                start_new_session=True,  # Ctrl-C is not for it
            )

    @contextmanager
    def decoding(self, name: str) -> Iterator[None]:
        """Note that a file is decoded in the block."""
        try:
            slot = self._free.pop()
        except IndexError:  # so many at the same time are not expected
            yield
            return
        path = os.fsencode(name)[: SLOT_BYTES - 2]
        self._memory[slot + 2 : slot + 2 + len(path)] = path
        self._memory[slot : slot + 2] = len(path).to_bytes(2, "big")
        try:
            yield
        finally:
            self._memory[slot : slot + 2] = b"\0\0"
            self._free.append(slot)

    def end(self) -> None:
        """End the process, which has nothing to name."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(b".")
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)


class _State:
    """What is watched in this process.

    Attributes:
        watch: The watch, if anything was decoded.
        names: Of contents in memory, by their identity.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the watch of the process that this one is a fork of."""
        self.lock = threading.Lock()
        self.watch: _Watch | None = None
        self.names: dict[int, str] = {}

    def start(self, directory: str | None) -> _Watch:
        """Return the watch that reports into a directory."""
        with self.lock:
            if self.watch is None or self.watch.directory != directory:
                self.end()
                self.watch = _Watch(directory)
            return self.watch

    def end(self) -> None:
        """End the watch: whatever is decoded, this process is not ended by it."""
        if self.watch is not None:
            self.watch.end()


_STATE = _State()
os.register_at_fork(after_in_child=_STATE.clear)
end_watch = _STATE.end
atexit.register(end_watch)


@contextmanager
def decoding(name: str, reports: RunReports = RunReports()) -> Iterator[None]:
    """Have the file of that name named if this process ends within the block: on stderr, and to the launcher."""
    watch = _STATE.watch
    if watch is None or watch.directory != reports.directory:
        watch = _STATE.start(reports.directory)
    with watch.decoding(name):
        yield


@contextmanager
def decoding_content(content: object) -> Iterator[None]:
    """Do the same for a content in memory that `named` has given a name."""
    name, watch = _STATE.names.get(id(content)), _STATE.watch
    if name is None or watch is None:
        yield
        return
    with watch.decoding(name):
        yield


@contextmanager
def named(names: Mapping[int, str], reports: RunReports) -> Iterator[None]:
    """Give the contents with these identities names, as long as the block lasts."""
    _STATE.start(reports.directory)
    _STATE.names.update(names)
    try:
        yield
    finally:
        for each in names:
            _STATE.names.pop(each, None)
