"""The web application of the page: who may ask, what is answered, and contents of rows by ranges."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import resources
from string import Template
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..search.queries import QueryError
from ..terminal import print_note
from .contents import Content, Contents, NotAvailable
from .library import Library

UPLOAD_BYTES = 64 << 20  # of a sound or picture as query
TEXT_BYTES = 64 << 10  # of a text as query
UPLOADS = 2  # in memory at a time
TOP, MOST = 20, 500  # rows of a snapshot

_STATIC = {"browse.js": "text/javascript", "browse.css": "text/css"}

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Of everything else: if it is opened by itself, nothing in it runs or is loaded.
_CLOSED_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)


class ReadingStopped(Exception):
    """Error of a content that could not be read to its end, after a part of it was sent."""


def make_app(library: Library, token: str, host_names: Collection[str]) -> ASGIApp:
    """Return the application.

    Args:
        library: What it shows.
        token: What each request must have as its parameter `token`.
        host_names: The names, in lower case, that requests may give the server, besides IP addresses.
    """
    uploads = asyncio.Semaphore(UPLOADS)
    files = resources.files(__package__)
    page = Template(files.joinpath("page.html").read_text("utf-8")).substitute(token=token)
    static = {name: files.joinpath(name).read_bytes() for name in _STATIC}

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY})

    async def show_static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in static:
            raise HTTPException(404, "there is no such file")
        return Response(static[name], media_type=_STATIC[name])

    async def snapshots(request: Request) -> Response:
        return JSONResponse({"snapshots": library.describe(), "upload_bytes": UPLOAD_BYTES})

    async def first_rows(request: Request) -> Response:
        return JSONResponse({"answers": await run_in_threadpool(library.first_rows, _top(request))})

    async def near_text(request: Request) -> Response:
        try:
            text = (await _body(request, TEXT_BYTES)).decode()
        except UnicodeDecodeError:
            raise HTTPException(400, "the text is not UTF-8") from None
        return await _answers(library.near_text, text, _top(request))

    async def near_media(request: Request) -> Response:
        async with uploads:
            data = await _body(request, UPLOAD_BYTES)
            return await _answers(library.near_media, request.query_params.get("name", ""), data, _top(request))

    async def near_row(request: Request) -> Response:
        snapshot, row = _row_of(library, request)
        found = await run_in_threadpool(library.row_as_json, snapshot, row)
        return await _answers(library.near_row, snapshot, row, _top(request), query=found)

    def content_state(request: Request) -> Response:
        contents, found = _content_of(library, request)
        return JSONResponse({"head": contents.snapshot.head.name, "type": found.type, "bytes": found.size})

    def content(request: Request) -> Response:
        return _send_content(request, *_content_of(library, request))

    async def show_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    async def show_not_available(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 410)

    row = "{snapshot:int}/{row:int}"
    routes = [
        Route("/", show_page),
        Route("/static/{name}", show_static),
        Route("/snapshots", snapshots),
        Route("/first", first_rows),
        Route("/near/text", near_text, methods=["POST"]),
        Route("/near/media", near_media, methods=["POST"]),
        Route(f"/near/{row}", near_row),
        Route(f"/content/{row}/state", content_state),
        Route(f"/content/{row}", content),
    ]
    handlers: dict[Any, Callable[[Request, Exception], Any]] = {
        HTTPException: show_error,
        NotAvailable: show_not_available,
    }
    return _Guard(Starlette(routes=routes, exception_handlers=handlers), token, host_names)


class _Guard:
    """Refuses requests without the token or for another host, and adds the headers of every answer."""

    def __init__(self, app: ASGIApp, token: str, host_names: Collection[str]) -> None:
        self.app, self.token, self.host_names = app, token.encode(), host_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", _CLOSED_POLICY)
            await send(message)

        given = QueryParams(scope["query_string"]).get("token", "").encode("utf-8", "replace")
        if not is_host(Headers(scope=scope).get("host", ""), self.host_names):
            answer: ASGIApp = PlainTextResponse("This server has another name.\n", 421)
        elif not hmac.compare_digest(given, self.token):
            answer = PlainTextResponse("Open the whole address that audioclip browse has printed.\n", 403)
        else:
            answer = self.app
        await answer(scope, receive, send_with_headers)


def is_host(header: str, names: Collection[str]) -> bool:
    """Return whether a Host header has an IP address or one of `names`: another name may lead here by DNS rebinding."""
    name = re.sub(r":\d*$", "", header)
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") else name)
    except ValueError:
        return name.lower().rstrip(".") in names
    return True


async def _answers(call: Callable[..., Any], *values: Any, query: Mapping[str, Any] | None = None) -> Response:
    try:
        return JSONResponse({"answers": await run_in_threadpool(call, *values), "query": query})
    except QueryError as error:
        raise HTTPException(400, str(error)) from None


async def _body(request: Request, limit: int) -> bytes:
    """Return the body of a request. Raise HTTPException if it has more than `limit` bytes."""
    refusal = HTTPException(413, f"a query has at most {limit:,} bytes: give a shorter one", {"Connection": "close"})
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise refusal
    data = bytearray()
    async for piece in request.stream():
        if len(data) + len(piece) > limit:
            raise refusal
        data += piece
    return bytes(data)


def _top(request: Request) -> int:
    given = request.query_params.get("top", str(TOP))
    if not re.fullmatch(r"[0-9]{1,9}", given) or not 1 <= int(given) <= MOST:
        raise HTTPException(400, f"top={given:.20} is not a number from 1 to {MOST}")
    return int(given)


def _row_of(library: Library, request: Request) -> tuple[int, int]:
    """Return the numbers of the snapshot and of the row that the path of a request has."""
    snapshot, row = int(request.path_params["snapshot"]), int(request.path_params["row"])
    if snapshot >= len(library.snapshots) or row >= len(library.snapshots[snapshot]):
        raise HTTPException(404, "there is no such row")
    return snapshot, row


def _content_of(library: Library, request: Request) -> tuple[Contents, Content]:
    snapshot, row = _row_of(library, request)
    contents = library.contents[snapshot]
    if not contents.snapshot.head.by_reference:
        raise HTTPException(404, "the row has no file")
    return contents, contents.find(library.snapshots[snapshot].row(row))


def _send_content(request: Request, contents: Contents, content: Content) -> Response:
    """Return the answer with a content, or with the range of it that the request asks for.

    A header that is not understood, or names several ranges, is ignored, as the standard allows.
    """
    start, end, status = 0, content.size, 200
    headers = {"Accept-Ranges": "bytes", "Content-Disposition": "inline"}
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if match and match[0] != "bytes=-":
        first, last = match.groups()
        if first:
            start, end = int(first), min(content.size, int(last) + 1) if last else content.size
        else:
            start = max(0, content.size - int(last))
        if first and last and int(last) < int(first):
            start, end = 0, content.size  # not a range
        elif start >= content.size:
            return Response(None, 416, {**headers, "Content-Range": f"bytes */{content.size}"})
        else:
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{content.size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(None, status, headers, content.type)
    return StreamingResponse(_pieces(contents, content, start, end), status, headers, content.type)


def _pieces(contents: Contents, content: Content, start: int, end: int) -> Iterator[bytes]:
    try:
        yield from contents.read(content, start, end)
    except OSError as error:
        print_note(f"{content.file.path} cannot be read to its end: {error}")
        raise ReadingStopped from error
