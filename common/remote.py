"""Remote files: accepted addresses, and transfers with limits of size and time.

fsspec knows many schemes, some of which run a program, unpack archives or chain others (``::``),
and an address may come from an untrusted list. So this module opens only a few schemes, by their
own class and never through fsspec's parser of chains.
"""

import dataclasses
import errno
import functools
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.callbacks import Callback

from cavmae.common.errors import CavmaeError

# Scheme: command that installs its package.
SCHEMES = {
    "http": "pip install 'cavmae[http]'",
    "https": "pip install 'cavmae[http]'",
    "s3": "pip install 'cavmae[s3]'",
    "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs",
    "hf": "pip install huggingface_hub",
}
LOCAL = ("file", "local")
URL = re.compile(r"(?P<chain>(?:[A-Za-z0-9+.-]+::)*)(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
LEAST_BYTES = 1 << 20  # that pass within ``stall_seconds``, or the transfer has stalled
WATCH_EVERY = 0.5  # s between checks of a transfer
# Classes of backends' errors, by name, since no backend needs to be installed: aiohttp's,
# botocore's, requests' and httpx's.
_LOST = {
    "ClientConnectionError", "ClientPayloadError", "ConnectionError", "HTTPClientError",
    "TransportError",
}  # fmt: skip
_SLOW = {"SocketTimeoutError", "ReadTimeout", "ReadTimeoutError"}
# Of botocore and of Google's library: credentials that are missing.
_ANONYMOUS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
_MALFORMED = {"InvalidURL", "UnsupportedProtocol", "NonHttpUrlRedirectClientError"}


class AddressError(CavmaeError):
    """An address that the program refuses to open.

    Attributes:
        reason: ``bad_address``, or ``no_package`` where the scheme's package is not installed.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class RemoteError(OSError):
    """A transfer that failed.

    Attributes:
        reason: ``unreachable``, ``stalled``, ``too_large``, or ``unreadable`` for anything else.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a transfer.

    Args:
        size: largest size in bytes.
        stall_seconds: time in which at least ``LEAST_BYTES`` must pass.
    """

    size: float = 64e9
    stall_seconds: float = 60.0


DEFAULT_LIMITS = Limits()


def local_path(url: str) -> str | None:
    """Path of a ``file://`` URL; None for other URLs."""
    match = URL.match(url)
    if match is None or match["chain"] or match["scheme"].lower() not in LOCAL:
        return None
    return url[match.end() :]


def check_address(url: str) -> None:
    """Raises AddressError if :func:`filesystem` does."""
    _scheme(url)


def _scheme(url: str) -> tuple[str, str]:
    """Scheme of a URL in lower case, and the part after ``://``."""
    match = URL.match(url)
    assert match is not None
    scheme, rest = match["scheme"].lower(), url[match.end() :]
    if match["chain"] or re.search(r"::[A-Za-z][A-Za-z0-9+.-]*://", rest):
        raise AddressError("bad_address", f"{url} is a chain of addresses (::): name the last one.")
    if scheme in LOCAL:
        return scheme, rest
    if scheme not in SCHEMES:
        raise AddressError(
            "bad_address",
            f"{url} has the unknown scheme {scheme!r}: known are {', '.join(SCHEMES)} and file.",
        )
    if not rest.strip("/") or not _has_host(scheme, rest):
        raise AddressError(
            "bad_address", f"{url} is no whole address: it names no host or no file."
        )
    if not _is_installed(scheme):
        raise AddressError(
            "no_package", f"{url} needs a package that is not installed: {SCHEMES[scheme]}."
        )
    return scheme, rest


def _has_host(scheme: str, rest: str) -> bool:
    try:
        host = urllib.parse.urlsplit(f"{scheme}://{rest}").netloc
    except ValueError:  # brackets that do not match
        return False
    return bool(host) and not re.search(r"\s", host)


@functools.cache
def _is_installed(scheme: str) -> bool:
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError:
        return False
    return True


def filesystem(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a URL, and the path on it.

    Raises:
        AddressError: an unknown scheme, a chain of schemes, or a package that is not installed.
    """
    scheme, rest = _scheme(url)
    kind = fsspec.get_filesystem_class(scheme)
    name = f"{scheme}://{rest}"
    options = kind._get_kwargs_from_urls(name)
    if scheme in ("http", "https"):
        import aiohttp

        # By default a download may take five minutes in all. An abandoned, stalled download ends
        # with sock_read.
        limits = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=600)
        options["client_kwargs"] = {"timeout": limits}
    elif scheme == "s3":
        # Parallel parts of 50 MB fill the memory of many workers, and hide the progress.
        options["max_concurrency"] = 1
    return kind(**options), kind._strip_protocol(name)


class Meter(Callback):
    """Callback that counts a transfer's bytes, and aborts it from within the backend.

    Args:
        limit: largest number of bytes.
        verb: of the bytes, in messages.

    Attributes:
        abandoned: set from outside, it ends the transfer at its next bytes.
    """

    def __init__(self, limit: float, verb: str = "arrived"):
        super().__init__()
        self.limit = limit
        self.verb = verb
        self.abandoned = False

    @property
    def exceeded(self) -> bool:
        return max(self.value, self.size or 0) > self.limit

    def call(self, *arguments: Any, **keywords: Any) -> None:
        if self.abandoned or self.exceeded:
            raise RemoteError("too_large" if self.exceeded else "stalled", "aborted")


def fetch(
    url: str,
    path: Path,
    limits: Limits = DEFAULT_LIMITS,
    on_progress: Callable[[], None] | None = None,
) -> None:
    """Downloads a URL to a new local file; a failed download leaves no file.

    Args:
        url: of another machine.
        path: of the copy.
        limits: limits of size and of time without progress.
        on_progress: called repeatedly while bytes arrive.

    Raises:
        AddressError: see :func:`filesystem`.
        FileNotFoundError: the file is missing.
        PermissionError: access to the file is denied.
        RemoteError: any other failure of the network or the server.
        OSError: the copy cannot be written.
    """
    system, remote = filesystem(url)
    meter = Meter(limits.size)
    try:
        run_watched(
            url,
            lambda: system.get_file(remote, str(path), callback=meter),
            limits,
            meter,
            on_progress,
        )
        if path.stat().st_size > limits.size:  # from a backend that reports no progress
            raise _too_large(url, limits.size)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def size_of(url: str) -> int:
    """Size of a URL's content in bytes. Raises as :func:`fetch`."""
    system, remote = filesystem(url)
    limits = Limits()
    size = run_watched(url, lambda: system.info(remote)["size"], limits, Meter(limits.size), None)
    if size is None:
        raise RemoteError("unreadable", f"{url}: the server does not say how large it is")
    return int(size)


def run_watched(
    url: str,
    call: Callable[[], Any],
    limits: Limits,
    meter: Meter,
    on_progress: Callable[[], None] | None,
) -> Any:
    """Runs a backend's call in a thread, and abandons it when it stalls: most cannot be stopped.

    Args:
        url: for messages.
        call: of the backend.
        limits: of time; ``meter`` has that of size.
        meter: of the transfer's bytes.
        on_progress: called repeatedly while bytes pass.

    Raises:
        see :func:`fetch`.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    mark, since, reported = 0, time.monotonic(), 0
    try:
        while thread.is_alive():
            thread.join(WATCH_EVERY)
            received, now = meter.value, time.monotonic()
            if received - mark >= LEAST_BYTES:
                mark, since = received, now
            elif now - since > limits.stall_seconds and thread.is_alive():
                raise RemoteError(
                    "stalled",
                    f"{url}: {received - mark} bytes {meter.verb} in {limits.stall_seconds:g} s, "
                    f"{received} in all",
                )
            if on_progress is not None and received > reported:
                reported = received
                on_progress()
    finally:
        meter.abandoned = True
    if meter.exceeded:
        raise _too_large(url, limits.size) from next(iter(errors), None)
    if errors:
        error = _translate_error(url, errors[0])
        if error is errors[0]:
            raise error  # with its own cause
        raise error from errors[0]
    return results[0]


def _too_large(url: str, size: float) -> RemoteError:
    return RemoteError("too_large", f"{url} is larger than the limit of {size / 1e9:g} GB")


def _translate_error(url: str, error: BaseException) -> BaseException:
    """Translates a backend's error to one of :func:`fetch`, by its chain of causes.

    Some backends report every failure as "no such file", so the causes come first.
    """
    if not isinstance(error, Exception):
        return error
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    reason = " ".join(str(chain[-1]).split()) or type(chain[-1]).__name__
    text = f"{url}: {reason}"
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    statuses = {status for link in chain if (status := _status(link)) is not None}
    if names & _MALFORMED:
        return AddressError("bad_address", f"{url} is no address that can be opened.")
    if statuses & {404, 410}:
        return FileNotFoundError(errno.ENOENT, f"no such file ({reason})", url)
    denied = any(isinstance(link, PermissionError) for link in chain) or names & _ANONYMOUS
    if statuses & {401, 403} or denied:
        return PermissionError(errno.EACCES, f"no permission ({reason})", url)
    if any(status == 429 or status >= 500 for status in statuses):
        return RemoteError("unreachable", text)
    if names & _SLOW:
        return RemoteError("stalled", text)
    if names & _LOST or any(isinstance(link, socket.gaierror | ssl.SSLError) for link in chain):
        return RemoteError("unreachable", text)
    if any(isinstance(link, TimeoutError) for link in chain):
        return RemoteError("unreachable", text)
    known = isinstance(error, FileNotFoundError | FileExistsError)
    if known or (isinstance(error, OSError) and error.errno):
        return error
    return RemoteError("unreadable", text)


def _status(error: BaseException) -> int | None:
    """HTTP status of a backend's error."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None
