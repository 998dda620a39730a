"""Effects that fail: the calls by which a run touches files below one directory, counted, and some made to fail.

The seam is the operating system's own: open, read, write, fsync, rename, unlink, mkdir. Whatever code makes the call,
it fails as it would on a disk that is full, broken or removed; the model fails when it computes vectors.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# The kinds of effects, in the order in which a run reaches them.
EFFECTS = (
    "start",
    "link",
    "read",
    "model",
    "spill",
    "reuse",
    "write",
    "sync",
    "rename",
    "manifest",
    "pointer",
    "remove",
)


@dataclass
class Fault:
    """A fault: the `nth` effect of a kind, or of "any", fails and, if it is `lasting`, every later one.

    `late` lets the effect happen and then fails, as if its answer were lost. `meanwhile` is called instead of failing.
    """

    effect: str
    nth: int = 1
    error: int = errno.EIO
    lasting: bool = False
    late: bool = False
    meanwhile: Callable[[], None] | None = None


def effect_of(call: str, path: str) -> str | None:
    """Return which of EFFECTS a call on a file is; None if no run depends on it."""
    name = os.path.basename(path)
    if name.endswith("run.lock") or name in ("publish.lock", "current.json.lock"):
        return None
    if "current.json" in name:
        return "pointer"
    if "manifest.json" in name:
        return "manifest"
    if call in ("unlink", "rmdir"):
        return "remove"
    if name.startswith("spill-"):
        return "spill"
    if "/snapshots/" not in path:
        return "read" if call == "read" else None
    if not name.lstrip(".").startswith(("part-", "rejected-")):  # the directory, its lock and its listings
        return "start"
    return {"read": "reuse", "link": "link", "write": "write", "sync": "sync", "rename": "rename"}.get(call)


class Faults:
    """The effects on all files below `root` while `armed` is active.

    `seen` counts them by kind, and `opened` has the paths of the files that were opened to be read.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.seen, self.fired = str(root), Counter[str](), 0
        self.opened = set[str]()
        self._fault: Fault | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def armed(self, fault: Fault | None) -> Iterator[None]:
        """Let `fault` happen within the block."""
        self.seen.clear()
        self.opened.clear()
        self.fired, self._fault = 0, fault
        with self._patched():
            try:
                yield
            finally:
                self._fault = None

    @contextlib.contextmanager
    def around(self, effect: str | None, path: str) -> Iterator[None]:
        """Wrap one effect: fail before it, after it, or not."""
        fault, struck = self._fault, False
        if effect is not None:
            with self._lock:
                self.seen[effect] += 1
                if fault and fault.effect in (effect, "any"):
                    times = self.seen.total() if fault.effect == "any" else self.seen[effect]
                    struck = times == fault.nth or (fault.lasting and times > fault.nth)
                    self.fired += struck
        if fault and struck and fault.meanwhile and not fault.late:
            self._fault = None  # it happens once, and without faults
            fault.meanwhile()
        elif fault and struck and not fault.late and not fault.meanwhile:
            raise OSError(fault.error, os.strerror(fault.error), path)
        yield
        if fault and struck and fault.late and fault.meanwhile:
            self._fault = None
            fault.meanwhile()
        elif fault and struck and fault.late:
            raise OSError(fault.error, os.strerror(fault.error), path)

    def concerns(self, path: object) -> bool:
        """Return whether a path is below the root."""
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.root)

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        plain = {
            name: getattr(os, name) for name in ("rename", "replace", "link", "unlink", "remove", "makedirs", "fsync")
        }
        plain_open = io.open

        def opened(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not self.concerns(path) or "b" not in mode:
                return plain_open(path, mode, *args, **options)
            call = "read" if mode == "rb" else "write"
            if call == "read":
                self.opened.add(os.fspath(path))
            with self.around(effect_of(call, os.fspath(path)), os.fspath(path)):
                handle = plain_open(path, mode, *args, **options)
            return _File(handle, call, os.fspath(path), self)

        def wrap(name: str, call: str) -> Callable[..., Any]:
            def called(path: Any, *args: Any, **options: Any) -> Any:
                if not self.concerns(path):
                    return plain[name](path, *args, **options)
                with self.around(effect_of(call, os.fspath(path)), os.fspath(path)):
                    return plain[name](path, *args, **options)

            return called

        def synced(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            with self.around(effect_of("sync", path) if self.concerns(path) else None, path):
                plain["fsync"](descriptor)

        calls = {"rename": "rename", "replace": "rename", "link": "link", "unlink": "unlink", "remove": "unlink"}
        calls["makedirs"] = "mkdir"
        changed = {name: wrap(name, call) for name, call in calls.items()}
        with contextlib.ExitStack() as undo:
            for name, function in {**changed, "fsync": synced}.items():
                undo.callback(setattr, os, name, plain[name])
                setattr(os, name, function)
            for module in (builtins, io):
                undo.callback(setattr, module, "open", plain_open)
                module.open = opened  # type: ignore[attr-defined]
            yield


class _File:
    """An open file whose reads and writes are effects; a write that fails leaves half of its bytes."""

    def __init__(self, handle: IO[bytes], call: str, path: str, faults: Faults) -> None:
        self._handle, self._effect, self._path, self._faults = handle, effect_of(call, path), path, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._handle)

    def read(self, *size: Any) -> bytes:
        with self._faults.around(self._effect, self._path):
            return self._handle.read(*size)

    def write(self, data: Any) -> int:
        try:
            with self._faults.around(self._effect, self._path):
                pass
        except OSError:
            with contextlib.suppress(OSError):
                self._handle.write(bytes(data)[: len(data) // 2])
            raise
        return self._handle.write(data)
