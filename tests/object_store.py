"""moto's real S3 server on this machine, which records requests and fails as a test asks it to."""

import contextlib
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "clips"


class Request(NamedTuple):
    """A request to the store: ``part`` is the number of an UploadPart, else 0."""

    method: str
    key: str
    part: int
    query: str

    @property
    def creates(self) -> bool:
        """Whether it makes an object visible: PutObject, CompleteMultipartUpload."""
        if self.method == "POST":
            return "uploadId" in self.query
        return self.method == "PUT" and not self.part and bool(self.key)


# Answer of a fault: status and S3's error code; None: the store answers itself.
Fault = Callable[[Request], tuple[int, str] | None]


class ObjectStore:
    """A server with one bucket.

    Attributes:
        requests: all that were answered without a fault.
        fault: of the requests to come.
        system: fsspec's view of the store.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.fault: Fault = lambda request: None
        self.system: Any = None
        self._application = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        query = environ["QUERY_STRING"]
        part = int(parse_qs(query).get("partNumber", ["0"])[0])
        _, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        request = Request(environ["REQUEST_METHOD"], key, part, query)
        answer = self.fault(request)
        if answer is None:
            response = self._application(environ, start_response)
            self.requests.append(request)
            return response
        status, code = answer
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{code}</Code><Message>the store says {code}</Message></Error>"
        start_response(f"{status} Fault", [("Content-Type", "application/xml")])
        return [body.encode()]

    def objects(self, folder: str) -> dict[str, bytes]:
        """Content of all objects of a folder, by name."""
        self.system.invalidate_cache()
        prefix = f"{BUCKET}/{folder}/"
        return {
            path.removeprefix(prefix): self.system.cat_file(path)
            for path in self.system.find(prefix)
        }

    def created(self) -> list[str]:
        """Names of the objects that were created or replaced, in order."""
        return [r.key.rpartition("/")[2] for r in self.requests if r.creates]

    def unfinished(self) -> list[str]:
        """Keys of multipart uploads that were neither completed nor aborted."""
        return [upload["Key"] for upload in self.system.list_multipart_uploads(BUCKET)]


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Starts a store with the bucket ``clips``; the environment leads to it meanwhile."""
    import s3fs

    store = ObjectStore()
    server = make_server("127.0.0.1", 0, store, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.port}"
    reset = urllib.request.Request(f"{address}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # moto keeps the buckets of an earlier server
    before = dict(os.environ)
    os.environ.update(
        AWS_ACCESS_KEY_ID="AKIDEXAMPLE", AWS_SECRET_ACCESS_KEY="very-secret-key",
        AWS_DEFAULT_REGION="us-east-1", AWS_ENDPOINT_URL=address,
    )  # fmt: skip
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        store.system = s3fs.S3FileSystem()
        store.system.mkdir(BUCKET)
        yield store
    finally:
        os.environ.clear()
        os.environ.update(before)
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()
        thread.join()
