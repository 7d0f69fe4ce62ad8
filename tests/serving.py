"""Web servers on this machine: one misbehaves as asked for by a path's first part, one is a hub."""

import base64
import contextlib
import hashlib
import json
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

    def __init__(self, folder: Path, handler: type[BaseHTTPRequestHandler]):
        super().__init__(("127.0.0.1", 0), handler)
        self.folder = folder
        self.closing = threading.Event()


class _HubHandler(BaseHTTPRequestHandler):
    """The requests of an upload to the Hugging Face hub, and downloads of what was uploaded."""

    server: "_Server"
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer letmein":
            self._answer(json.dumps({"error": "no such token"}).encode(), 401)
        elif self.path.endswith("/repos/create"):
            name = json.loads(body)["organization"] + "/" + json.loads(body)["name"]
            self._answer(json.dumps({"url": self._address(name), "id": name}).encode())
        elif self.path.endswith("/validate-yaml"):
            self._answer(b'{"errors": [], "warnings": []}')
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(json.dumps({"files": files}).encode())
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._answer(b"", 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name, _, file = self.path[1:].partition("/resolve/main/")
        path = self.server.folder / name / file
        if not path.is_file():
            self._answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
            return
        data = path.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        self._answer(data, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": "0" * 40})

    def _commit(self, body: bytes) -> None:
        name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                path = self.server.folder / name / entry["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(entry["value"]["content"]))
        url = f"{self._address(name)}/commit/{'0' * 40}"
        self._answer(json.dumps({"commitUrl": url, "commitOid": "0" * 40}).encode())

    def _address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def _answer(self, data: bytes, status: int = 200, headers: dict[str, str] = {}) -> None:  # noqa: B006 - not changed
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def _running(folder: Path, handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = _Server(folder, handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def serving(folder: Path) -> contextlib.AbstractContextManager[str]:
    """Address of a server of the folder's files."""
    return _running(folder, _Handler)


def hub(folder: Path) -> contextlib.AbstractContextManager[str]:
    """Address of a hub for the token ``letmein`` that keeps repositories in a folder."""
    return _running(folder, _HubHandler)


def refusing() -> str:
    """Address at which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}"
