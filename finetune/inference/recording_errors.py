"""Errors of one recording: each names it, and says what to do."""

import contextlib
import errno
from collections.abc import Iterator, Mapping

import av
import torch

from cavmae.common.errors import CavmaeError, NonFiniteError
from cavmae.datasets.media import MediaError

# Errors of the output disk; they concern all recordings of a run.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
# Messages for recordings that cannot be read.
MEDIA_MESSAGES = {
    "missing": "there is no such file",
    "empty": "the file is empty",
    "unreadable": "it cannot be read",
    "decode_error": "it does not decode",
    "no_stream": "it has no stream of this number",
}


class FullDiskError(CavmaeError):
    """The output disk is full or read-only, so no further result can be written."""


@contextlib.contextmanager
def recording_errors(
    recording: str, model: str, precision: str | None, messages: Mapping[str, str]
) -> Iterator[None]:
    """Re-raises any failure as a CavmaeError that names the recording.

    Args:
        recording: name of the recording.
        model: name of the model.
        precision: of the model; None: the command has no choice.
        messages: for reasons of :class:`MediaError` beyond :data:`MEDIA_MESSAGES`.

    Raises:
        FullDiskError: results cannot be written.
        CavmaeError: any other failure.
    """
    try:
        yield
    except MediaError as error:
        message = {**MEDIA_MESSAGES, **messages}.get(error.reason, error.reason)
        raise CavmaeError(f"{recording}: {message} ({error.detail}).") from error
    except NonFiniteError as error:
        remedy = "" if precision in ("fp32", None) else ", or try --precision fp32"
        raise CavmaeError(
            f"{recording}: model {model} gives NaN or Inf for it, so its weights or its "
            f"statistics are damaged: copy the model again{remedy}."
        ) from error
    except torch.OutOfMemoryError as error:
        remedy = "" if precision in ("bf16", None) else "--precision bf16, or "
        raise CavmaeError(
            f"{recording}: the GPU's memory does not suffice: {remedy}--device cpu."
        ) from error
    except MemoryError as error:
        raise CavmaeError(f"{recording}: memory does not suffice.") from error
    except (OSError, av.FFmpegError) as error:
        if error.errno in FULL:
            remedy = (
                "name another folder."
                if error.errno == errno.EROFS
                else "free some space and give the same command again; what is finished is kept."
            )
            raise FullDiskError(
                f"{recording}: its results cannot be written ({error.strerror}): {remedy}"
            ) from error
        raise CavmaeError(f"{recording}: {error}") from error
