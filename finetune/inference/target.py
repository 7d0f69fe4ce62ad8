"""Target person: a box, a point or a mask in a frame, or a reference recording of the voice."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import sha256_of

if TYPE_CHECKING:  # the command line lists the options without PyTorch
    from cavmae.finetune.inference.predictor import Cue
    from cavmae.finetune.speaker.cues import CueKind


@dataclasses.dataclass(frozen=True)
class Target:
    """Options of the target person; at most one of box, point, mask and voice.

    Args:
        box: left, top, right, bottom in pixels of the displayed frame, or as fractions of it, from
            0 to 1.
        point: x and y in pixels of the displayed frame, or as fractions of it.
        mask: PNG of the size of the frame, white where the person is.
        voice: recording of the person's voice alone.
        time: time of the frame of a box, point or mask, in seconds.
    """

    box: tuple[float, float, float, float] | None = None
    point: tuple[float, float] | None = None
    mask: str | None = None
    voice: str | None = None
    time: float = 0.0

    @property
    def kind(self) -> "CueKind":
        """Kind of the cue; ``none`` without a target.

        Raises:
            UsageError: several kinds at once.
        """
        kinds: tuple[CueKind, ...] = ("box", "point", "mask", "voice")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) > 1:
            raise UsageError(f"Name the target in one way, not by {' and '.join(given)}.")
        return given[0] if given else "none"

    def file_digest(self) -> str | None:
        """SHA-256 of the content of the mask or voice; None: neither is named.

        Raises:
            CavmaeError: the file cannot be read.
        """
        path = self.mask if self.mask is not None else self.voice
        if path is None:
            return None
        try:
            return sha256_of(Path(path))
        except OSError as error:
            raise CavmaeError(
                f"--target.{self.kind} {path} cannot be read: {error.strerror}."
            ) from error

    def check(self) -> None:
        """Check the options and files that do not depend on the recording.

        Raises:
            UsageError: several kinds at once.
            CavmaeError: a file that cannot be read, or holds nothing.
        """
        from cavmae.finetune.inference.target_cue import check_files

        check_files(self)

    def cue(self, display: tuple[int, int], seconds: float, samples: int) -> "Cue | None":
        """Cue for the model; None: there is no target.

        Args:
            display: (height, width) of the recording in pixels, as displayed.
            seconds: length of the recording.
            samples: length of the reference voice that the model takes.

        Raises:
            UsageError: the cue lies outside the frame or the recording.
            CavmaeError: a file that cannot be read, or holds nothing.
        """
        from cavmae.finetune.inference.target_cue import cue_of

        return cue_of(self, display, seconds, samples)
