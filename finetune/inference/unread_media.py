"""Parts of a recording that do not decode, and how many of them are too many."""

from cavmae.datasets.media import MediaError, Probe
from cavmae.datasets.media.playback import Playback


class UnreadMedia:
    """Frames and packets of sound that were lost so far, as a recording is played.

    Args:
        info: of the recording.
        playing: the recording.
        limit: share of all frames, and of all packets of sound, that may be lost.
    """

    def __init__(self, info: Probe, playback: Playback, limit: float):
        self._playback = playback
        self._limit = limit
        self.frames = playback.wanted
        self._packets = max(1, info.audio_packets)

    @property
    def missing_frames(self) -> int:
        """Frames that could not be decoded."""
        return self._playback.missing

    @property
    def missing_audio(self) -> float:
        """Share of the sound's packets that could not be decoded."""
        # Damage may lead to packets that the container does not list.
        return min(1.0, self._playback.damaged_sound / self._packets)

    def check(self) -> None:
        """Compares with the limit, which may be passed long before the recording ends.

        Raises:
            MediaError: ``decode_error``, when too much is lost.
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
                f"at least {self._playback.damaged_sound} of the {self._packets} packets of its "
                f"sound could not be decoded, more than --max-missing {self._limit:g} allows",
            )

    def remarks(self) -> list[str]:
        """A sentence about each kind of loss."""
        sentences = []
        if self.missing_frames:
            sentences.append(
                f"{self.missing_frames} of {self.frames} frames could not be decoded; the frame "
                "before stays on screen"
            )
        if self._playback.damaged_sound:
            sentences.append(
                f"{self._playback.damaged_sound} of {self._packets} packets of sound could not be "
                "decoded; there is silence"
            )
        return sentences
