"""A web server on this machine that misbehaves as asked for by a path's first part."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Handler(BaseHTTPRequestHandler):
    """``/stall/NAME`` sends half of a file, ``/endless/X`` never ends, ``/403/X`` is a status,
    ``/silent/X`` never answers, ``/cut/NAME`` closes in the middle, ``/big/X`` claims a terabyte,
    ``/slow/NAME`` sends 1 MB in half a second, ``/file/NAME`` sends a file of the folder."""

    server: "_Server"
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        _, kind, name = self.path.split("?")[0].split("/", 2)
        if kind.isdigit():
            self.send_error(int(kind))
            return
        if kind == "silent":
            self.server.closing.wait()
            return
        path = self.server.folder / name
        data = path.read_bytes() if path.is_file() else None
        if data is None and kind in ("file", "stall", "cut", "slow"):
            self.send_error(404)
            return
        self.send_response(200)
        if kind == "endless":
            self.send_header("Connection", "close")
        elif kind == "big":
            self.send_header("Content-Length", str(10**12))
        else:
            assert data is not None
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            if kind in ("endless", "big"):
                while not self.server.closing.is_set():
                    self.wfile.write(bytes(1 << 16))
            assert data is not None
            if kind == "slow":
                for start in range(0, len(data), 1 << 18):
                    self.server.closing.wait(0.125)
                    self.wfile.write(data[start : start + (1 << 18)])
                return
            self.wfile.write(data if kind == "file" else data[: len(data) // 2])
            self.wfile.flush()
            if kind == "stall":
                self.server.closing.wait()

    def log_message(self, *arguments: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.closing = threading.Event()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Address of a server of the folder's files."""
    server = _Server(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def refusing() -> str:
    """Address at which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}"
