"""Counts of undecodable frames and audio packets, with a limit."""

from typing import Protocol

from cavmae.datasets.media import MediaError


class CountedMedia(Protocol):
    """Recording that counts what does not decode.

    Attributes:
        wanted: number of distinct frames that are read of the video.
        missing: number of frames so far that do not decode.
    """

    wanted: int
    missing: int

    @property
    def damaged_audio(self) -> int:
        """Number of audio packets so far that do not decode."""
        ...


class UnreadMedia:
    """Frames and audio packets of a recording that failed to decode so far.

    Args:
        media: the recording as it is decoded.
        audio_packets: number of audio packets; 0: the audio is not decoded.
        limit: largest fraction of all frames, and of all audio packets, that may be lost.
    """

    def __init__(self, media: CountedMedia, audio_packets: int, limit: float):
        self._media = media
        self._limit = limit
        self.frames = media.wanted
        self._packets = max(1, audio_packets)

    @property
    def missing_frames(self) -> int:
        """Frames that could not be decoded."""
        return self._media.missing

    @property
    def missing_audio(self) -> float:
        """Fraction of the audio packets that could not be decoded."""
        # Damage may lead to packets that the container does not list.
        return min(1.0, self._media.damaged_audio / self._packets)

    def check(self) -> None:
        """Check the losses against the limit, which may be exceeded long before the end.

        Raises:
            MediaError: ``decode_error``, when more is lost than the limit allows.
        """
        if self.missing_frames > self._limit * self.frames:
            raise MediaError(
                "decode_error",
                f"at least {self.missing_frames} of its {self.frames} frames could not be decoded, "
                f"more than --max-missing {self._limit:g} allows",
            )
        if self.missing_audio > self._limit:
            raise MediaError(
                "decode_error",
                f"at least {self._media.damaged_audio} of its {self._packets} audio packets "
                f"could not be decoded, more than --max-missing {self._limit:g} allows",
            )

    def remarks(self) -> list[str]:
        """One sentence for each kind of loss."""
        sentences = []
        if self.missing_frames:
            sentences.append(
                f"{self.missing_frames} of {self.frames} frames could not be decoded; the "
                "previous frame replaces each"
            )
        if self._media.damaged_audio:
            sentences.append(
                f"{self._media.damaged_audio} of {self._packets} audio packets could not be "
                "decoded; silence replaces them"
            )
        return sentences
