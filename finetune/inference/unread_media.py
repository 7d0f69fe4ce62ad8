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

    def __init__(self, info: Probe, playing: Playback, limit: float):
        self._playing = playing
        self._limit = limit
        self.frames = playing.wanted
        self._packets = max(1, info.audio_packets)

    @property
    def missing_frames(self) -> int:
        """Frames that could not be decoded."""
        return self._playing.missing

    @property
    def missing_sound(self) -> float:
        """Share of the sound's packets that could not be decoded."""
        # Damage may lead to packets that the container does not list.
        return min(1.0, self._playing.damaged_audio / self._packets)

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
        if self.missing_sound > self._limit:
            raise MediaError(
                "decode_error",
                f"at least {self._playing.damaged_audio} of the {self._packets} packets of its "
                f"sound could not be decoded, more than --max-missing {self._limit:g} allows",
            )

    def remarks(self) -> list[str]:
        """A sentence about each kind of loss."""
        said = []
        if self.missing_frames:
            said.append(
                f"{self.missing_frames} of {self.frames} frames could not be decoded; the frame "
                "before stays on screen"
            )
        if self._playing.damaged_audio:
            said.append(
                f"{self._playing.damaged_audio} of {self._packets} packets of sound could not be "
                "decoded; there is silence"
            )
        return said
