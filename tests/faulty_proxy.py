"""An HTTP proxy that spoils requests on their way to a server: what object stores do on bad days."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

Fault = int | str | float | None
"""A status to answer with; `reset`; `cut`: half an answer; `lost`: done, but the answer is reset; seconds of delay."""
Plan = Callable[[str, str, int], Fault]
ERROR = "<Error><Code>{}</Code><Message>planned</Message></Error>"
CODES = {
    400: "ExpiredToken", 403: "AccessDenied", 404: "NoSuchKey", 409: "OperationAborted", 429: "TooManyRequests",
    503: "SlowDown",
}  # fmt: skip


def sound(method: str, path: str, number: int) -> Fault:
    """Every request goes well."""
    return None


def one_in_ten(source: random.Random) -> Plan:
    """Every tenth request, by chance, comes to grief in one of all ways."""
    faults: tuple[Fault, ...] = (500, 503, 429, "reset", "lost", "cut", 2.0)
    return lambda method, path, number: source.choice(faults) if source.random() < 0.1 else None


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that are gone: they are killed, or were reset by us."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class FaultyProxy:
    """Between its address and `upstream`; `plan(method, path, number)` says what becomes of each request."""

    def __init__(self, upstream: str, plan: Plan = sound) -> None:
        self.plan = plan
        self.requests: list[tuple[str, str, Fault]] = []
        self.headers: list[tuple[str, dict[str, str]]] = []
        self._lock = threading.Lock()
        outer, target = self, urlsplit(upstream).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: Any) -> None: ...

            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.headers.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
                fault = outer._next(self.command, self.path)
                if isinstance(fault, float):
                    time.sleep(fault)
                if fault == "reset":
                    return self._reset()
                if isinstance(fault, int):
                    return self._answer(fault, [], ERROR.format(CODES.get(fault, "InternalError")).encode())
                status, headers, content = self._forward(body)
                if fault == "lost":
                    return self._reset()
                if fault == "cut" and len(content) > 1:
                    self._answer(status, headers, content, cut=True)
                    return self._reset()
                return self._answer(status, headers, content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_request

            def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                connection = http.client.HTTPConnection(target, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                return answer.status, answer.getheaders(), content

            def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                if not any(name.lower() == "content-length" for name, _ in headers):
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if cut else content)

            def _reset(self) -> None:
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                # What the base class flushes afterwards goes nowhere.
                self.wfile = open("/dev/null", "wb")  # noqa: SIM115

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def _next(self, method: str, path: str) -> Fault:
        with self._lock:
            fault = self.plan(method, path, len(self.requests))
            self.requests.append((method, path, fault))
            return fault

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
