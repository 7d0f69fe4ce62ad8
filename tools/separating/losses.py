"""Parts of a recording that do not decode, and how many of them are too many."""

from cavmae.datasets.media import MediaError, Probe
from cavmae.datasets.media.playback import Playback
from cavmae.datasets.media.probe import open_container


class Losses:
    """Frames and packets of sound that were lost so far, as a recording is played.

    Args:
        info: of the recording.
        playing: the recording.
        limit: share of all frames, and of all packets of sound, that may be lost.
    """

    def __init__(self, info: Probe, playing: Playback, limit: float):
        self._path = info.path
        self._playing = playing
        self._limit = limit
        self._packets = 0  # of sound; counted once one is lost
        # Frames that are shown: at most 25 a second, and each counts once however long it stays.
        self.frames = max(1, min(len(info.frame_times), int(playing.seen.sum())))

    @property
    def missing_frames(self) -> int:
        """Frames that could not be decoded."""
        return self._playing.missing

    @property
    def missing_sound(self) -> float:
        """Share of the sound's packets that could not be decoded."""
        return self._damaged / self._packets if self._packets else 0.0

    @property
    def _damaged(self) -> int:
        return self._playing._sound.damaged

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
        if self._damaged and not self._packets:
            # What is lost may be what a broken index leads to: never fewer than that.
            self._packets = max(_sound_packets(self._path), self._damaged)
        if self.missing_sound > self._limit:
            raise MediaError(
                "decode_error",
                f"at least {self._damaged} of the {self._packets} packets of its sound could not "
                f"be decoded, more than --max-missing {self._limit:g} allows",
            )

    def remarks(self) -> list[str]:
        """A sentence about each kind of loss."""
        said = []
        if self.missing_frames:
            said.append(
                f"{self.missing_frames} of {self.frames} frames could not be decoded; the frame "
                "before stays on screen"
            )
        if self._damaged:
            said.append(
                f"{self._damaged} of {self._packets} packets of sound could not be decoded; there "
                "is silence"
            )
        return said


def _sound_packets(path: str) -> int:
    """Packets of the sound, without decoding them."""
    with open_container(path) as container:
        return sum(1 for packet in container.demux(container.streams.audio[0]) if packet.size)
