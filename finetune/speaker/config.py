"""Configuration of the speaker model: set by the user, saved and built from; imports no PyTorch."""

import dataclasses

from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.laterals.settings import LateralOptions, NoLateralOptions
from cavmae.finetune.motion.settings import ConvMotionOptions, MotionOptions
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.speaker.pixel_decoders.settings import PixelDecoderOptions, PyramidOptions
from cavmae.pretrain.config import EncoderConfig, check_bounds

BOUNDS: dict[str, tuple[int, int]] = {  # (least, most), see cavmae.pretrain.config
    "slots": (2, 256), "width": (4, 4096), "heads": (1, 256), "query_layers": (0, 256),
    "slot_layers": (0, 256), "mask_width": (8, 4096),
    "key_frames": (1, 4096), "motion_height": (16, 4096), "motion_width": (16, 4096),
    "motion_pool": (1, 16), "head_size": (0, 1024),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SpeakerConfig:
    """Configuration of the speaker model.

    Args:
        encoder: of audio and frames; its fbank frames (100 a second) fix a clip's length.
        slots: one for each person at most, and one for the residual, the last.
        width: embedding width of slots.
        heads: attention heads of the decoders.
        query_layers: layers of the query generator.
        slot_layers: layers of the slot decoder.
        mask_width: channels of the pixel decoder's output.
        key_frames: key frames of a clip, in color.
        motion_height: height of the grey frames in pixels, a multiple of 4.
        motion_width: width of the grey frames in pixels, a multiple of 4.
        motion_pool: side of the squares of pixels that are averaged for ``motion``, whose frames
            have sides that are multiples of 4, too.
        motion: pathway over the whole grey frames.
        head_size: side in pixels of the crops around heads that articulation cues are read from, a
            multiple of 4; 0: cues are read from ``motion`` under masks.
        head_motion: pathway over these crops.
        pixel_decoder: of key frames' tokens, pixels and motion to the map that masks are read from.
        lateral: connections of audio, motion and key frames before the pixel decoder.
        sound: separator of the voices, told by the articulation cues that are read from motion.
        classes: labels of clips that serve as hints (a category of people, the topic of a meeting):
            with the probability ``loss.hint_prob`` the model gets the target's class.

    Raises:
        ValueError: numbers that make no model; the message names the field.
    """

    encoder: EncoderConfig = EncoderConfig()
    slots: int = 8
    width: int = 256
    heads: int = 8
    query_layers: int = 6
    slot_layers: int = 6
    mask_width: int = 64
    key_frames: int = 8
    motion_height: int = 224
    motion_width: int = 224
    motion_pool: int = 1
    motion: MotionOptions = ConvMotionOptions()
    head_size: int = 0
    head_motion: MotionOptions = ConvMotionOptions(width=32, depth=3)
    pixel_decoder: PixelDecoderOptions = PyramidOptions()
    lateral: LateralOptions = NoLateralOptions()
    sound: SoundSeparatorConfig = SoundSeparatorConfig()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.slots < 2:
            raise ValueError(f"slots {self.slots}: at least 2, the last is the residual.")
        check_bounds(self, BOUNDS)
        if self.sound.conditioning != "cue":
            raise ValueError(
                f"sound.conditioning {self.sound.conditioning}: the speaker model extracts each "
                "voice by its cue, train its separator with conditioning cue."
            )
        if "" in self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)}: each needs a name of its own.")
        if self.width % self.heads or self.width % 4 or self.mask_width % 8:
            raise ValueError(
                f"width {self.width} is not a multiple of 4 and of {self.heads} heads, or "
                f"mask_width {self.mask_width} not of 8."
            )
        for name in ("motion_height", "motion_width"):
            if getattr(self, name) % (4 * self.motion_pool):
                raise ValueError(
                    f"{name} {getattr(self, name)} is not a multiple of {4 * self.motion_pool}"
                    f"{' (4 motion_pool)' if self.motion_pool > 1 else ''}."
                )
        if self.head_size and getattr(self.lateral, "audio_in_cue", False):
            raise ValueError(
                "lateral.audio_in_cue joins audio to the motion of whole frames, and cues are read "
                "from heads: set head_size to 0, or leave it out."
            )
        if self.head_size % 4 or 0 < self.head_size < 16:
            raise ValueError(f"head_size {self.head_size}: 0, or a multiple of 4 from 16 on.")
        if self.encoder.audio_frames % 16 or self.frames % self.key_frames:
            raise ValueError(
                f"audio_frames {self.encoder.audio_frames}, key_frames {self.key_frames}: a clip "
                "needs whole patches of 160 ms, and the same number of frames for each key frame."
            )

    @property
    def motion_size(self) -> tuple[int, int]:
        """(height, width) of the grey frames in pixels."""
        return self.motion_height, self.motion_width

    @property
    def frames(self) -> int:
        """T, the number of video frames of a clip."""
        return self.encoder.audio_frames * VIDEO_RATE // 100

    @property
    def samples(self) -> int:
        """S, the number of samples of a clip at 16 kHz."""
        return self.encoder.audio_frames * 160

    @property
    def seconds(self) -> float:
        """Duration of a clip in seconds."""
        return self.encoder.audio_frames / 100
