"""Files that are written whole or not at all, their sha256, and locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

CHUNK_BYTES = 1 << 20

# Errors by which a file system says that it has no locks, as network and FUSE mounts do.
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})

LOCK_SECONDS = 600  # how long to wait for a lock file, on a file system without locks


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file's bytes in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def replace_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the directory of `target`; rename it to `target` if the block succeeds, else remove it.

    The directory is created. Whatever the block writes, the file gets the mode that the umask gives to new files.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777  # asking os.umask would change it for other threads
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def has_locks(path: str | os.PathLike[str]) -> bool:
    """Return whether the file system of a lock's file, which is made if it is missing, has locks."""
    is_new = not os.path.lexists(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # another process holds it
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if is_new:
            Path(path).unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of `path` for the block; on a file system without locks, a lock file of another name.

    Raises:
        OSError: That lock file does not disappear, as if its process was killed on another machine.
    """
    if has_locks(path):
        with FileLock(path):
            yield
        return
    lock = SoftFileLock(f"{os.fspath(path)}.held", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise OSError(
            errno.ETIMEDOUT, f"{lock.lock_file} shows that another process works there: remove it if none does"
        ) from None
    try:
        yield
    finally:
        lock.release()
