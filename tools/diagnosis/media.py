"""FFmpeg in PyAV: its libraries, and the decoders and encoders that the project needs."""

from typing import Literal, NamedTuple

import av
from av.codec.codec import UnknownCodecError

# Codec: what it is for. Without those of NEEDED, common recordings are not read and results not
# written.
DECODERS = {
    "h264": "most MP4 files", "hevc": "phones", "vp9": "WebM", "av1": "new WebM and MP4",
    "aac": "sound of MP4", "opus": "sound of WebM",
}  # fmt: skip
ENCODERS = {"libx264": "videos of results", "aac": "their sound"}
NEEDED = {("r", "h264"), ("r", "aac"), ("w", "libx264"), ("w", "aac")}


class CodecState(NamedTuple):
    """Decoder or encoder.

    Attributes:
        name: FFmpeg's.
        use: files that need it.
        available: whether this FFmpeg has it.
        needed: whether the project cannot work without it.
    """

    name: str
    use: str
    available: bool
    needed: bool


def libraries() -> dict[str, str]:
    """Version of FFmpeg in PyAV, and of each of its libraries."""
    versions = {name: ".".join(map(str, v)) for name, v in sorted(av.library_versions.items())}
    return {"ffmpeg": av.ffmpeg_version_info, **versions}


def decoders() -> list[CodecState]:
    """Decoders that matter."""
    return [_state(name, use, "r") for name, use in DECODERS.items()]


def encoders() -> list[CodecState]:
    """Encoders that matter."""
    return [_state(name, use, "w") for name, use in ENCODERS.items()]


def _state(name: str, use: str, mode: Literal["r", "w"]) -> CodecState:
    try:
        av.Codec(name, mode)
    except UnknownCodecError:
        return CodecState(name, use, False, (mode, name) in NEEDED)
    return CodecState(name, use, True, (mode, name) in NEEDED)


def problems() -> list[str]:
    """Sentence for each needed codec that is missing."""
    states = [*(("decoder", s) for s in decoders()), *(("encoder", s) for s in encoders())]
    return [
        f"FFmpeg in PyAV has no {kind} {state.name}: install PyAV's own wheel, pip install "
        "--only-binary av av"
        for kind, state in states
        if state.needed and not state.available
    ]
