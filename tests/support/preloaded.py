"""Programs `python` and `audioclip` for the PATH of tests that run documented commands: they start in milliseconds.

They pass their arguments, variables, directory and standard streams on to a server, which has imported Beam, torch and the
pipeline, and forks. What runs there sees what a new interpreter would see, except for modules that are imported already.
Tests of the start and the end of a process use `tests.support.program` instead.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
import types
from contextlib import suppress
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.processes import start_process

# The isolated interpreter, without site-packages, starts in 20 ms.
CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
try:
    server.connect({address!r})
except ConnectionRefusedError:
    sys.exit("the server has ended: " + open({log!r}).read())
arguments = {prefix!r} + sys.argv[1:]
request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
sys.exit(int(server.recv(4) or 70))
"""


@functools.cache
def preloaded_programs() -> Path:
    """Return a directory with the two programs, whose server ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="programs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, prefix in (("python", []), ("audioclip", ["-m", "audioclip_beam.pipeline"])):
        program = folder / name
        address, log = str(folder / "socket"), str(folder / "stderr")
        program.write_text(CLIENT.format(python=sys.executable, address=address, log=log, prefix=prefix))
        program.chmod(0o755)
    # The socket listens before the server has started, so that no program has to wait for it.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(True)  # Beam's client of Google Cloud gives every new socket a time limit
        listener.bind(str(folder / "socket"))
        listener.listen()
        start_process(serve, listener, str(folder / "python"), stderr=folder / "stderr")
    return folder


def serve(listener: socket.socket, python: str) -> None:
    """Answer programs until this process is ended: each runs in a fork, whose parent returns its exit status.

    What they start with `sys.executable`, such as Beam's worker processes, are such programs as well.
    """
    sys.executable = python
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with listener:
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                _answer(client)
                os._exit(0)
            client.close()


def _answer(client: socket.socket) -> None:
    size, streams, _, _ = socket.recv_fds(client, 4, 3)
    with client.makefile("rb") as file:
        request = json.loads(file.read(int.from_bytes(size, "big")))
    child = os.fork()
    if child == 0:
        client.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os._exit(_run(*request))
    for stream in streams:
        os.close(stream)
    threading.Thread(target=_kill_without, args=(client, child), daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    client.sendall(str(status if status >= 0 else 128 - status).encode())


def _kill_without(client: socket.socket, child: int) -> None:
    """Kill the child when the program that asked for it is gone."""
    with suppress(OSError):
        client.recv(1)
        os.kill(child, signal.SIGKILL)


def _run(arguments: list[str], directory: str, environment: dict[str, str]) -> int:
    """Run what `python` with these arguments runs; return its exit status."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    tempfile.tempdir = None
    logging.getLogger().handlers.clear()
    given = [path for path in environment.get("PYTHONPATH", "").split(":") if path]
    sys.path[:] = [*given, *(path for path in sys.path if path not in ("", str(ROOT)))]
    try:
        try:
            _execute(arguments)
            status = 0
        except SystemExit as end:
            if not isinstance(end.code, int | None):
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        status = 1
    return status


def _execute(arguments: list[str]) -> None:
    if arguments[0] == "-P":  # the current directory is not on the path
        _execute(arguments[1:])
        return
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), vars(main))
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")
