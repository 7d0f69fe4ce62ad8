"""Sources of inputs: local files, or temporary copies of remote ones."""

import contextlib
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cavmae.common.files import is_url
from cavmae.common.remote import (
    DEFAULT_LIMITS,
    AddressError,
    Limits,
    RemoteError,
    fetch,
    local_path,
)
from cavmae.datasets.media import MediaError

LONGEST_ENDING = 16  # characters of a file name's suffix


@contextlib.contextmanager
def local_copy(
    source: str,
    folder: Path,
    prefix: str = "input-",
    limits: Limits = DEFAULT_LIMITS,
    beat: Callable[[], None] | None = None,
) -> Iterator[str]:
    """Local path of a file or URL for FFmpeg; a remote file is copied for the context's duration.

    Args:
        source: path or URL.
        folder: for the copy.
        prefix: of the copy's own folder in it.
        limits: of a download.
        beat: called now and then while bytes arrive.

    Raises:
        MediaError: ``not_a_file``; ``missing`` or another reason of a download.
        OSError: permission denied, or the disk is full.
    """
    local = local_path(source) or source
    remote = is_url(local)
    if not remote:
        _refuse_special(local)
    if not remote and _is_utf8(local):
        yield local
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=prefix) as scratch:
        # A signed URL has a query behind its ending, longer than a name may be.
        ending = Path(local.split("?")[0]).suffix[:LONGEST_ENDING]
        path = Path(scratch) / ("video" + re.sub(r"[^.A-Za-z0-9]", "", ending))
        if remote:
            try:
                fetch(local, path, limits, beat)
            except FileNotFoundError as error:
                raise MediaError("missing", f"{local}: no such file") from error
            except (AddressError, RemoteError) as error:
                raise MediaError(error.reason, str(error)) from error
        else:
            path.symlink_to(Path(local).absolute())
        yield str(path)


def _refuse_special(path: str) -> None:
    """Raise MediaError for a pipe, which may block, or a device, which may never end."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return  # the caller that opens it reports the reason
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise MediaError("not_a_file", "neither a file nor a folder but a pipe, socket or device")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
