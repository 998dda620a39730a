"""`audioclip browse`: read the snapshots, and serve the page until the process ends."""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..io.paths import given_path, real_path
from ..terminal import print_line, print_note
from .snapshot_rows import SnapshotRows

if TYPE_CHECKING:
    from starlette.types import ASGIApp
    from uvicorn import Server


def browse(outputs: Sequence[str], *, host: str, port: int, files: Mapping[str, str | None]) -> None:
    """Serve a page over the current snapshots of `outputs`, until a signal ends the process.

    Args:
        outputs: The directories of the snapshots.
        host: The address or name to listen on.
        port: The port, or 0 for a free one.
        files: Paths of the models' files, by the name of a flag; by default those of each snapshot.

    Raises:
        ValueError: An output is given twice, or the extra `browse` is not installed.
        SnapshotError: A snapshot cannot be read.
        OSError: The address cannot be listened on.
    """
    try:
        import uvicorn  # noqa: F401 - is it installed?

        from .app import make_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "anyio", "h11", "click"):
            raise
        raise ValueError(
            f"browse needs a package that is not installed, {error.name}: run pip install 'audioclip-beam[browse]'"
        ) from None
    from .library import Library

    seen = set[str]()
    for output in outputs:
        path = real_path(given_path(output)).rstrip("/")
        if path in seen:
            raise ValueError(f"{output} is given twice: name each directory of snapshots once")
        seen.add(path)
    listening = _listen(host, port)
    with listening:
        snapshots = list[SnapshotRows]()
        for output in outputs:
            print_note(f"reading the rows of {output}")
            snapshots.append(SnapshotRows.read(output))
        token, address = secrets.token_urlsafe(24), listening.getsockname()
        name = socket.gethostname() if _is_any(address[0]) else address[0]
        if not ipaddress.ip_address(address[0]).is_loopback:
            print_note(f"WARNING: {host} can be reached from other machines, and what is sent is not encrypted")
        names = {"localhost", host.lower(), name.lower()}
        server = _server(make_app(Library(snapshots, files), token, names))
        print_note("Ctrl-C ends it; snapshots that are published meanwhile are read at the next start")
        print_line(f"http://{f'[{name}]' if ':' in name else name}:{address[1]}/?token={token}")
        sys.stdout.flush()
        server.run(sockets=[listening])


def _server(app: ASGIApp) -> Server:
    """Return a server that leaves signals to this process, and logs its own errors alone."""
    from uvicorn import Config, Server

    from .app import ReadingStopped

    class QuietServer(Server):
        @contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            yield

    def is_unexpected(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], ReadingStopped))

    logging.getLogger("uvicorn.error").addFilter(is_unexpected)
    return QuietServer(
        Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
    )


def _is_any(address: str) -> bool:
    return ipaddress.ip_address(address).is_unspecified


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address. Raise OSError if that is not possible."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise OSError(f"--host {host} --port {port} cannot be listened on: {error.strerror or error}") from error
