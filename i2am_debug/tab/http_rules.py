"""What a request must be like, and what every answer carries. Knows no runs."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable
from typing import Any

from tensorboard.backend import http_util
from werkzeug.datastructures import Headers
from werkzeug.wrappers import Request, Response

from .. import __version__
from .refusal import Refusal

ALLOW_HOSTS = "I2AM_ALLOW_HOSTS"

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+)(?::[0-9]{1,5})?")
_INTEGER = re.compile(r"[0-9]{1,12}")
_NAME_LENGTH = 4096
# An answer that is opened as a page runs nothing, and pages from elsewhere can't embed one.
_NO_PAGE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_LOCAL = {"localhost", "127.0.0.1", "[::1]"}


def route(answer: Callable[[Any, Request], Response]) -> Callable[..., Iterable[bytes]]:
    """A method that answers a request → a WSGI app that answers GETs to this machine, and says no in one sentence."""
    return _app(answer, (check_method, check_host))


def open_route(answer: Callable[[Any, Request], Response]) -> Callable[..., Iterable[bytes]]:
    """As `route`, whatever name this machine is called by: for what holds no data.

    Without the page itself a person under another name would see an empty frame instead of why.
    """
    return _app(answer, (check_method,))


def _app(
    answer: Callable[[Any, Request], Response], checks: Iterable[Callable[[Request], None]]
) -> Callable[..., Iterable[bytes]]:
    @functools.wraps(answer)
    def app(self: Any, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        headers: list[tuple[str, str]] = []
        try:
            for check in checks:
                check(request)
            response = answer(self, request)
            response.headers.update(_NO_PAGE)
            return response(environ, start_response)
        except Refusal as refusal:
            status, text = refusal.status, str(refusal)
            if status == 405:
                headers = [("Allow", "GET")]
        except Exception:  # a fault of ours is a sentence in the tab and a traceback in the log, not a page of HTML
            logging.getLogger(__name__).exception("the I2AM tab failed at %s", request.path)
            status, text = 500, "The tab failed at this; TensorBoard's log says where."
        refused = http_util.Respond(request, text, "text/plain", code=status, headers=[*headers, *_NO_PAGE.items()])
        return refused(environ, start_response)

    return app


def check_method(request: Request) -> None:
    """Raises:
    Refusal: not a GET.
    """
    if request.method != "GET":
        raise Refusal(405, "The tab only reads: GET is the only method.")


def check_host(request: Request) -> None:
    """Raises:
    Refusal: addressed to a host that is not this machine.
    """
    # TensorBoard itself answers any name, so a page from elsewhere whose name was made to point here could read all of it.
    named = _host(request.environ.get("HTTP_HOST", ""))
    allowed = [part.strip().lower() for part in os.environ.get(ALLOW_HOSTS, "").split(",")]
    own = {*_LOCAL, socket.gethostname().lower(), *(_host(part) for part in allowed if part)}
    if "*" not in allowed and (not named or named not in own):
        raise Refusal(
            403,
            "The I2AM tab answers only under the names localhost, 127.0.0.1, [::1] and this machine's own; to allow others, "
            f"start TensorBoard with the environment variable {ALLOW_HOSTS}=name,name or {ALLOW_HOSTS}=*",
        )


def text_of(request: Request, name: str) -> str:
    """A parameter that must be there.

    Raises:
        Refusal: it is not, or it is too long.
    """
    value = request.args.get(name)
    if value is None or len(value) > _NAME_LENGTH:
        raise Refusal(400, f"The parameter {name} is {'missing' if value is None else 'too long'}.")
    return value


def integer_of(request: Request, name: str) -> int:
    """A parameter that must be there and an integer, 0 or higher.

    Raises:
        Refusal: it is not.
    """
    value = text_of(request, name)
    if not _INTEGER.fullmatch(value):
        raise Refusal(400, f"The parameter {name} must be an integer, 0 or higher, of at most 12 digits.")
    return int(value)


def etag(*statuses: os.stat_result | None) -> str:
    """Changes when one of the files does, or this package."""
    parts = ["-" if s is None else f"{s.st_mtime_ns:x}-{s.st_size:x}" for s in statuses]
    return "_".join([__version__, *parts])


def unchanged(request: Request, tag: str, kind: str) -> Response | None:
    """The answer to a browser that has this version already; None for one that has not."""
    if not request.if_none_match.contains_weak(tag):
        return None
    headers = {**_caching(tag), "X-Content-Type-Options": "nosniff"}
    return _Unchanged(status=304, headers=headers, content_type=kind)


class _Unchanged(Response):
    """werkzeug takes the type off such an answer, and TensorBoard warns of each answer without one."""

    def get_wsgi_headers(self, environ: Any) -> Headers:
        return Headers(self.headers)


def answer_bytes(
    request: Request, body: bytes, kind: str, tag: str | None = None, headers: Iterable[tuple[str, str]] = ()
) -> Response:
    """An answer that the browser may keep but must ask about again: files change while a run is being written."""
    kept = _caching(tag).items() if tag is not None else ()
    response = http_util.Respond(request, body, kind, headers=[*headers])
    response.headers.update(kept)
    response.headers["Cache-Control"] = "no-cache"
    return response


def answer_json(request: Request, value: Any, tag: str | None = None) -> Response:
    """As `answer_bytes`; the values must be plain and finite."""
    body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    return answer_bytes(request, body, "application/json", tag)


def _caching(tag: str) -> dict[str, str]:
    # Weak: the same answer may come compressed or not.
    return {"ETag": f'W/"{tag}"', "Cache-Control": "no-cache"}


def _host(value: str) -> str:
    """A host without its port, in lower case; nothing for what is none."""
    found = _HOST.fullmatch(value.strip())
    return found[1].lower().removesuffix(".") if found else ""
