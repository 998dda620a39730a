"""Small objects on s3://, written, listed and read: this project's code, bare boto3, and obstore if it is installed.

moto's server in a process of its own emulates S3, so the seconds are mostly its own; the CPU seconds are those of the
client alone. Reads ask for the version that was listed.

    pip install 'moto[server]' obstore
    python benchmarks/object_store.py                      # 10,000 objects of 2 kB
    python benchmarks/object_store.py --objects 1000 --threads 4
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.io.filesystem import write_atomically
from audioclip_beam.pipeline.io.in_order import map_in_order
from audioclip_beam.pipeline.io.versions import ListedFile, list_remote

OBJECT_BYTES = 2000
STEPS = ("write", "list", "read")


@contextmanager
def emulated_s3() -> Iterator[str]:
    """Start moto's server, and set the variables by which clients find it; yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/corpus", method="PUT")).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise SystemExit("moto's server does not start: pip install 'moto[server]'")
        os.environ |= {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield url
    finally:
        server.kill()
        server.wait()


class Ours:
    """This project's code."""

    def __init__(self, _: str, folder: str, threads: int) -> None:
        self.url, self.threads = f"s3://corpus/{folder}/", threads

    def write(self, name: str, data: bytes) -> None:
        """Write an object."""
        write_atomically(self.url + name, data, "application/octet-stream")

    def list(self) -> list[Any]:
        """Return the objects, as `read` takes them."""
        files = list_remote(f"{self.url}*", self.url)
        return [ListedFile(*row) for row in zip(files.paths, files.sizes, files.versions, strict=True)]

    def read(self, listed: list[Any]) -> Iterable[bytes]:
        """Yield the contents of the objects."""
        file_io = FileIO()
        yield from map_in_order(
            lambda file: file_io.read_range(file, 0, file.size), listed, self.threads, lambda file: file.size, 256 << 20
        )


class Boto3:
    """boto3's client, without time limits and repetitions of whole operations."""

    def __init__(self, _: str, folder: str, threads: int) -> None:
        import boto3

        self.client, self.folder, self.threads = boto3.client("s3"), folder, threads

    def write(self, name: str, data: bytes) -> None:
        """Write an object."""
        self.client.put_object(Bucket="corpus", Key=f"{self.folder}/{name}", Body=data)

    def list(self) -> list[Any]:
        """Return the objects, as `read` takes them."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="corpus", Prefix=f"{self.folder}/")
        return [(item["Key"], item["Size"], item["ETag"]) for page in pages for item in page["Contents"]]

    def read(self, listed: list[Any]) -> Iterable[bytes]:
        """Yield the contents of the objects."""

        def read(item: tuple[str, int, str]) -> bytes:
            key, size, tag = item
            body = self.client.get_object(Bucket="corpus", Key=key, Range=f"bytes=0-{size - 1}", IfMatch=tag)["Body"]
            return bytes(body.read())

        with ThreadPoolExecutor(self.threads) as pool:
            yield from pool.map(read, listed)


class Obstore:
    """obstore's client, with its repetitions."""

    def __init__(self, url: str, folder: str, threads: int) -> None:
        import obstore
        from obstore.store import S3Store

        self.obstore, self.folder, self.threads = obstore, folder, threads
        self.store = S3Store("corpus", endpoint=url, client_options={"allow_http": True})

    def write(self, name: str, data: bytes) -> None:
        """Write an object."""
        self.obstore.put(self.store, f"{self.folder}/{name}", data, use_multipart=False)

    def list(self) -> list[Any]:
        """Return the objects, as `read` takes them."""
        return [item for page in self.obstore.list(self.store, self.folder) for item in page]

    def read(self, listed: list[Any]) -> Iterable[bytes]:
        """Yield the contents of the objects."""

        def read(item: dict[str, Any]) -> bytes:
            options = {"range": (0, item["size"]), "if_match": item["e_tag"]}
            return bytes(self.obstore.get(self.store, item["path"], options=options).bytes())

        with ThreadPoolExecutor(self.threads) as pool:
            yield from pool.map(read, listed)


def measure(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return (result, seconds, CPU seconds of this process) of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measure each client in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=8)
    args = parser.parse_args()
    names = [f"{number:06}" for number in range(args.objects)]
    data = os.urandom(OBJECT_BYTES)
    kinds = [Ours, Boto3, *([Obstore] if importlib.util.find_spec("obstore") else [])]
    print("| client | " + " | ".join(f"{step}, seconds (CPU)" for step in STEPS) + " |\n| --- | --- | --- | --- |")
    with emulated_s3() as url:
        for kind in kinds:
            client: Any = kind(url, kind.__name__.lower(), args.threads)
            client.write("000000", data)  # makes connections

            def write(client: Any = client) -> None:
                with ThreadPoolExecutor(args.threads) as pool:
                    list(pool.map(lambda name: client.write(name, data), names))

            _, *written = measure(write)
            listed, *listing = measure(client.list)
            contents, *reading = measure(lambda client=client, listed=listed: list(client.read(listed)))
            if len(contents) != args.objects or set(contents) != {data}:
                raise SystemExit(f"{kind.__name__} has not read what was written")
            cells = [f"{seconds:.1f} ({cpu:.1f})" for seconds, cpu in (written, listing, reading)]
            print(f"| {kind.__name__} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
