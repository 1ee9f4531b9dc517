"""A web server that keeps what it is posted, and misbehaves on demand."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

__all__ = ["SECRET_PATH", "WebhookServer"]

SECRET_PATH = "/services/zyxwv-secret"


class WebhookServer:
    """`with WebhookServer() as hook`. `status` and `headers` are its answer.

    `silent`: it gives none; `slow`: it never comes to its end. `asked`: somebody came.
    """

    def __init__(self, *, context: ssl.SSLContext | None = None) -> None:
        self.received: list[dict[str, Any]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.silent = threading.Event()
        self.slow = threading.Event()
        self.asked = threading.Event()
        self._closing = threading.Event()
        self._context = context

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{'http' if self._context is None else 'https'}://127.0.0.1:{self.port}{SECRET_PATH}"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for message in self.received for event in message["events"]]

    def __enter__(self) -> Self:
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.asked.set()
                if hook.silent.is_set():
                    hook._closing.wait(30)
                    return
                if hook.slow.is_set():
                    self.send_response(200)
                    while not hook._closing.wait(0.1):
                        self.send_header("X-More", "to come")
                        self.flush_headers()
                    return
                hook.received.append(json.loads(body) | {"path": self.path})
                self.send_response(hook.status)
                for name, value in hook.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign,assignment] - a client that hangs up
        if self._context is not None:
            self._server.socket = self._context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
