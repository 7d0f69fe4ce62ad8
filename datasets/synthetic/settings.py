"""Settings of `cavmae render-talkers`."""

import dataclasses
import re
from typing import Any

from cavmae.common.errors import UsageError

TRUTH = "truth.json"  # of a clip, beside its video
QUALITY = 20.0  # CRF of the H.264 video (x264): less is better
# Hard cases: each is the probability that a clip or a person has it.
SCENE_CASES = (
    "profiles", "gestures", "crossings", "depth", "cut_off", "textures", "textured_backgrounds",
    "distractors",
)  # fmt: skip
CASES = (
    "silent", "pauses", "off_screen_voice", "noise", "music", "look_alikes",
    "similar_voices", "desync", "mouth_occlusion", *SCENE_CASES,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RenderSettings:
    """Content of a corpus. The same settings give the same clips, in any number of processes.

    Args:
        seed: of every random choice.
        speech: folder of speech recordings (FLAC, WAV, OGG, Opus, MP3); the name of a file up to
            its first ``-`` or ``_`` names its reader, else its folder does. Without it, espeak-ng
            synthesizes the voices.
        speakers: number of espeak-ng speakers; recordings have one speaker for each reader.
        people: in each clip: a number, or a range such as ``1-3``.
        seconds: length of a clip; below 2.56 `cavmae shard` needs a lower ``--min-seconds``.
        frame_rate: frames a second.
        height: of the video in pixels.
        width: of the video in pixels; 0: the height for one person, twice the height for more.
        valid_share: share of the speakers that go to the split ``valid``.
        test_share: share of the speakers that go to the split ``test``.
        without_people: share of clips without people, with distractors in any case, which serve as
            backgrounds of composed scenes.
        silent: share of people whose mouth moves without speech (chewing, smiling).
        pauses: share of speaking people with long pauses.
        off_screen_voice: share of clips with the voice of a person out of view.
        noise: share of clips with background noise.
        music: share of clips with background music.
        look_alikes: share of clips of several people in which two have the same appearance.
        similar_voices: share of clips of several people in which two voices are near in pitch.
        desync: share of clips whose audio is late or early by 120 to 600 ms (labelled).
        mouth_occlusion: share of people whose mouth is covered for a while or all the time.
        profiles: share of people who turn their head by 30 to 60 degrees.
        gestures: share of people whose hands rise before the chest, seldom before the mouth.
        crossings: share of clips of several people in which one walks past another.
        depth: share of clips with people nearer and further away than usual, overlapping.
        cut_off: share of people whose head the frame's edge cuts.
        textures: share of speakers with textured, shaded skin, hair and cloth; 0: flat colours.
        textured_backgrounds: share of clips before brick, script, foliage, shelves and the like.
        distractors: share of clips with furniture, posters of faces, busts, lone hands.
    """

    seed: int = 0
    speech: str | None = None
    speakers: int = 200
    people: str = "1"
    seconds: float = 5.12
    frame_rate: int = 25
    height: int = 224
    width: int = 0
    valid_share: float = 0.1
    test_share: float = 0.1
    without_people: float = 0.0
    silent: float = 0.1
    pauses: float = 0.3
    off_screen_voice: float = 0.1
    noise: float = 0.2
    music: float = 0.1
    look_alikes: float = 0.15
    similar_voices: float = 0.2
    desync: float = 0.03
    mouth_occlusion: float = 0.1
    profiles: float = 0.25
    gestures: float = 0.35
    crossings: float = 0.2
    depth: float = 0.5
    cut_off: float = 0.15
    textures: float = 0.8
    textured_backgrounds: float = 0.6
    distractors: float = 0.4

    @property
    def people_range(self) -> tuple[int, int]:
        """Least and most people in a clip."""
        match = re.fullmatch(r"([1-9])(?:-([1-9]))?", str(self.people).strip())
        if not match:
            raise UsageError(f"--people {self.people!r}: give a number, or a range such as 1-3.")
        return int(match[1]), int(match[2] or match[1])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of a frame in pixels."""
        wide = self.height * (1 if self.people_range[1] == 1 else 2)
        return self.width or wide, self.height

    @property
    def frames(self) -> int:
        """Number of frames of a clip."""
        return round(self.seconds * self.frame_rate)

    @property
    def length(self) -> float:
        """Length of a clip in seconds: a whole number of frames."""
        return self.frames / self.frame_rate

    def record(self) -> dict[str, Any]:
        """JSON object of all settings."""
        return dataclasses.asdict(self)

    def check(self) -> None:
        """Raise UsageError for a value out of range."""
        least, most = self.people_range
        ranges: dict[str, tuple[bool, str]] = {
            "people": (least <= most <= 4, "1 to 4"),
            "seed": (0 <= self.seed < 2**63, "at least 0"),
            "speakers": (1 <= self.speakers <= 100_000, "1 to 100000"),
            "seconds": (0.5 <= self.seconds <= 600, "0.5 to 600"),
            "frame_rate": (5 <= self.frame_rate <= 120, "5 to 120"),
            "height": (64 <= self.height <= 2160 and self.height % 2 == 0, "even, 64 to 2160"),
            "width": (
                self.width == 0 or (64 <= self.width <= 3840 and self.width % 2 == 0),
                "0, or even, 64 to 3840",
            ),
        }
        for fraction in ("valid_share", "test_share", "without_people", *CASES):
            ranges[fraction] = (0 <= getattr(self, fraction) <= 1, "a share, 0 to 1")
        for name, (good, wanted) in ranges.items():
            if not good:
                option = name.replace("_", "-")
                raise UsageError(
                    f"--{option} {getattr(self, name)} is out of range: it must be {wanted}."
                )
        if self.valid_share + self.test_share > 1:
            raise UsageError("--valid-share and --test-share together are more than 1.")
