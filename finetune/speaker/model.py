"""The speaker model: for every person a mask and a voice, under one index.

Queries out of sound as AVSegFormer, query-based separation as IQuery, on the encoder of CAV-MAE.
Slot k's mask says where to look for the motion that cuts voice k out of the mixture: voice k comes
from the pixels of mask k, and from nothing else that slot k holds but whether it is somebody. When
these pixels talk says when the voice is heard, and by that what all masks leave is shared out. The
last slot is the residual: voices of people who are not seen, noise.

Shapes: N clips of 2.56 s, S = 40,960 samples, T = 64 frames of 40 ms, F key frames of H x W pixels,
Q slots, D width; masks are H / 4 x W / 4.
"""

import dataclasses
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.datasets.stream.features import HOP, SAMPLE_RATE
from cavmae.datasets.stream.transforms import normalise_frames
from cavmae.finetune.separators import MixtureFeatures, build_separator
from cavmae.finetune.separators.base import at_spectrum_rate
from cavmae.finetune.speaker.center_voting import CenterVoting
from cavmae.finetune.speaker.cues import CueEncoder, Cues
from cavmae.finetune.speaker.decoder import SlotLayer, VoiceLayer, mlp_head
from cavmae.finetune.speaker.motion import MotionPathway, MotionReader
from cavmae.finetune.speaker.pixel_decoder import PixelDecoder
from cavmae.finetune.speaker.queries import CrossModalMixer, QueryGenerator
from cavmae.finetune.speaker.stft import bounded, compressed, masked_voices, spectrum, wave
from cavmae.pretrain.blocks import NORM_EPS
from cavmae.pretrain.encoder import CAVMAEConfig, Encoder, check_bounds
from cavmae.pretrain.hub import HubWeights
from cavmae.pretrain.positions import sin_cos, sin_cos_positions

STATES = ("speaking", "silent", "off-screen", "none")
SPEAKING, SILENT, OFF_SCREEN, NONE = range(4)
RATE = 25  # frames of video a second
QUIETEST = 1e-4  # RMS of a mixture that is not made louder
WIDEST: dict[str, tuple[int, int]] = {  # (least, most), see pretrain.encoder
    "slots": (2, 256), "width": (4, 4096), "heads": (1, 256), "query_layers": (0, 256),
    "slot_layers": (0, 256), "voice_layers": (0, 256), "mask_width": (8, 4096),
    "key_frames": (1, 4096), "motion_size": (16, 4096), "motion_channels": (1, 4096),
    "motion_blocks": (0, 256),
    "separator_width": (1, 4096),
}  # fmt: skip
LEAST_CLAIM = 0.05  # of the residual to what no voice takes, however sure nobody unseen is heard


@dataclasses.dataclass(frozen=True)
class SpeakerConfig:
    """Shape of a speaker model.

    Args:
        encoder: of the encoder; its fbank frames (100 a second) say how long a clip is.
        slots: Q, the last of which is the residual.
        width, heads: D, and heads of the attentions.
        query_layers: of the query generator.
        slot_layers: of the decoder of slots.
        voice_layers: of the decoder of voices.
        mask_width: channels of the map that masks are read from.
        key_frames: F, key frames.
        motion_size: (height, width) of the grey frames, multiples of 4.
        motion_width, motion_blocks: channels and blocks of the motion pathway.
        separator: name of one of :data:`cavmae.finetune.separators.SEPARATORS`.
        separator_width: its channels.
        classes: names of hints (a category of people, the topic of a meeting), numbered from 1; a
            clip without a hint has the number 0.
    """

    encoder: CAVMAEConfig
    slots: int = 8
    width: int = 256
    heads: int = 8
    query_layers: int = 6
    slot_layers: int = 6
    voice_layers: int = 3
    mask_width: int = 64
    key_frames: int = 8
    motion_size: tuple[int, int] = (224, 224)
    motion_channels: int = 64
    motion_blocks: int = 4
    separator: str = "unet"
    separator_width: int = 32
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "motion_size", tuple(self.motion_size))
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.slots < 2:
            raise ValueError(f"slots {self.slots}: one is the residual, so at least 2.")
        check_bounds(self, WIDEST)
        if self.width % self.heads or self.width % 4 or self.mask_width % 8:
            raise ValueError(
                f"width {self.width} is not a multiple of 4 and of {self.heads} heads, or "
                f"mask_width {self.mask_width} not of 8."
            )
        if any(side < 16 or side % 4 for side in self.motion_size):
            raise ValueError(f"motion_size {self.motion_size}: multiples of 4, at least 16.")
        if self.encoder.audio_size[1] % 16 or self.frames % self.key_frames:
            raise ValueError(
                f"audio_size {self.encoder.audio_size}, key_frames {self.key_frames}: a clip is "
                "made of whole patches of 160 ms, and as many frames belong to each key frame."
            )

    @property
    def frames(self) -> int:
        """T."""
        return self.encoder.audio_size[1] * RATE // 100

    @property
    def samples(self) -> int:
        """S."""
        return self.encoder.audio_size[1] * HOP

    @property
    def seconds(self) -> float:
        """Of a clip."""
        return self.samples / SAMPLE_RATE


class Inputs(NamedTuple):
    """What the model is given.

    Attributes:
        mixture: float32 [N, S].
        fbank: [N, 4 T, mel], of the mixture, normalised as in pretraining.
        frames: uint8 [N, F, H, W, 3].
        motion: uint8 [N, T, h, w].
        cues: one for each clip, perhaps none.
        hint: int64 [N], class; 0: none.
    """

    mixture: Tensor
    fbank: Tensor
    frames: Tensor
    motion: Tensor
    cues: Cues
    hint: Tensor


class SlotPredictions(NamedTuple):
    """What the slots found, before their voices are cut out.

    Attributes:
        slots: [N, Q, D].
        known: [N, D], what slot 0's voice is known by, where a cue told how it sounds; else 0.
        states: list of [N, Q, 4], logits after each layer; the residual's: off-screen (somebody
            unseen or noise is heard) or none.
        masks: list of [N, Q - 1, F, H / 4, W / 4], logits after each layer.
        votes: [N, 2, F, H / 4, W / 4], where each pixel says its person's middle is.
        mixed: [N, F, H / 4, W / 4], channel mean of the map after the cross-modal mixer: logits of
            whoever is heard.
        heard: of the separator.
        motion: [N, T, C, h / 4, w / 4].
    """

    slots: Tensor
    voice_cue: Tensor
    states: list[Tensor]
    masks: list[Tensor]
    votes: Tensor
    mixed: Tensor
    mixture_features: MixtureFeatures
    motion: Tensor


class VoicePredictions(NamedTuple):
    """What the slots sound like.

    Attributes:
        spectra: complex64 [N, Q, bins, frames] of the mixture at an RMS of 1; they add up to it.
        states: [N, Q, 4], logits, of who moves how, too.
        when: [N, Q, T], logits: whether the slot is heard in each 40 ms.
        scale: [N, 1, 1], by which waves are multiplied to be at the mixture's level.
    """

    spectra: Tensor
    states: Tensor
    activity_logits: Tensor
    scale: Tensor

    def waves(self, samples: int) -> Tensor:
        """float32 [N, Q, samples]; they add up to the mixture."""
        return wave(self.spectra, samples) * self.scale


class SpeakerModel(HubWeights, library_name="cavmae", tags=["audio-visual"]):
    """See the top of this file.

    Args:
        shape: of the model.
    """

    def __init__(self, shape: SpeakerConfig):
        super().__init__()
        self.config = shape
        c, e = shape, shape.encoder
        grid = e.image_grid
        self.encoder = Encoder(e)
        self.encoder.initialise()
        self.motion = MotionPathway(c.motion_channels, c.motion_blocks)
        self.separator = build_separator(c.separator, c.width, c.separator_width)
        if e.audio_size[1] < self.separator.least_frames:
            raise ValueError(
                f"separator {c.separator} needs clips of at least "
                f"{self.separator.least_frames / 100} s, not {c.seconds} s."
            )
        self.pyramid = PixelDecoder(e.width, c.motion_channels, c.mask_width, grid)
        self.sound = nn.Linear(e.width, c.width)
        self.picture = nn.Linear(e.width, c.width)
        self.looked = nn.Linear(4 * c.mask_width, c.width)
        self.sound_norm = nn.LayerNorm(c.width, eps=NORM_EPS)
        self.picture_norm = nn.LayerNorm(c.width, eps=NORM_EPS)
        self.generator = QueryGenerator(c.slots, c.width, c.query_layers, c.heads)
        self.slot = nn.Embedding(c.slots, c.width)  # the second table: who asks
        self.hint = nn.Embedding(len(c.classes) + 1, c.width)
        self.cues = CueEncoder(c.width, e.width)
        self.mixer_query = nn.Linear(c.width, c.mask_width)
        self.mixer = CrossModalMixer(c.mask_width, 4)
        self.slot_layers = nn.ModuleList(SlotLayer(c.width, c.heads) for _ in range(c.slot_layers))
        self.mask_head = mlp_head(c.width, c.width, c.mask_width)
        self.anchors = CenterVoting(c.width, c.mask_width, c.slots - 1)
        self.state_head = mlp_head(c.width, c.width, len(STATES))
        self.reader = MotionReader(c.motion_channels, c.width)
        self.heard = nn.Linear(self.separator.latent_width, c.width)
        self.heard_norm = nn.LayerNorm(c.width, eps=NORM_EPS)
        self.voice_layers = nn.ModuleList(
            VoiceLayer(c.width, c.heads) for _ in range(c.voice_layers)
        )
        self.voice_norm = nn.LayerNorm(c.width, eps=NORM_EPS)
        self.when = nn.Linear(c.width, 1)
        self.known = nn.Linear(c.width, c.width, bias=False)
        places = sin_cos_positions(c.width, grid)[:, None]
        times = sin_cos(c.width, torch.arange(c.key_frames) * c.frames / c.key_frames).float()
        self.register_buffer("places", (places + times[None, :, None]).flatten(1, 2), False)
        steps = sin_cos(c.width, torch.arange(c.frames, dtype=torch.float64)).float()[None]
        self.register_buffer("steps", steps, False)

    # --- the parts ---

    def encode(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of sound [N, La, E], key frames [N, F, L, E], cues' voices [N, La, E]."""
        frozen = not next(self.encoder.blocks_v.parameters()).requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            both = torch.cat([inputs.fbank, inputs.cues.voice])
            sound, voice = self.encoder.audio_features(both).chunk(2)
            pictures = self.encoder.frame_features(normalise_frames(inputs.frames))
        return sound, pictures, voice

    def predict_masks(self, inputs: Inputs) -> SlotPredictions:
        """Who is there, and where."""
        c = self.config
        n = len(inputs.mixture)
        sound_tokens, picture_tokens, voice = self.encode(inputs)
        frames = normalise_frames(inputs.frames)
        motion = self.motion(inputs.motion)
        # What moves around each key frame: as many frames before it as after.
        around = motion.unflatten(1, (c.key_frames, -1)).mean(2)
        map_, coarse = self.pyramid(
            picture_tokens.flatten(0, 1), frames.flatten(0, 1), around.flatten(0, 1)
        )
        sound = self.sound_norm(self.sound(sound_tokens))
        coarse = self.looked(coarse).unflatten(0, (n, -1))
        pictures = self.picture_norm(self.picture(picture_tokens) + coarse)
        # Each key frame's map is mixed with the sound of its own moment.
        rows, columns = c.encoder.audio_grid
        moments = sound.unflatten(1, (rows, columns)).mean(1).transpose(1, 2)
        moments = functional.interpolate(moments, c.key_frames, mode="linear").transpose(1, 2)
        query = self.mixer_query(moments).flatten(0, 1)[:, None]
        mixed = self.mixer(map_, query)
        map_ = (map_ + mixed).unflatten(0, (n, -1))
        mixed = mixed.mean(1).unflatten(0, (n, -1))

        slots = self.generator(sound)
        place = self.slot.weight.expand(n, -1, -1)
        hint = self.hint(inputs.hint)
        cue, known = self.cues(inputs.cues, pictures, voice)
        slots = slots + hint[:, None]
        slots = torch.cat([slots[:, :1] + cue[:, None], slots[:, 1:]], dim=1)
        states: list[Tensor] = []
        masks: list[Tensor] = []
        allowed: Tensor | None = None
        votes = self.anchors.votes(map_)
        seen = pictures.flatten(1, 2) + cast(Tensor, self.places)
        for layer in self.slot_layers:
            slots = layer(slots, place, seen, sound, allowed)
            found = self._masks(slots, map_, votes, masks[-1] if masks else None)
            states.append(self.state_head(slots))
            masks.append(found)
            allowed = self._allowed(found.detach())
        heard = self._encode_mixture(inputs.mixture)
        return SlotPredictions(slots, known, states, masks, votes, mixed, heard, motion)

    def _masks(self, slots: Tensor, map_: Tensor, votes: Tensor, before: Tensor | None) -> Tensor:
        """Logits [N, Q - 1, F, H / 4, W / 4]: what pixels look like, and whom they vote for."""
        asked = self.mask_head(slots[:, :-1])
        found = torch.einsum("nqc,nfchw->nqfhw", asked, map_)
        near: Tensor = self.anchors(slots[:, :-1], votes, before)
        return found + near

    def _allowed(self, masks: Tensor) -> Tensor:
        """Tokens that slots look at next: those under their masks, or all where that is nothing."""
        pooled = functional.avg_pool2d(masks.flatten(0, 1), 4).unflatten(0, masks.shape[:2])
        allowed = pooled.flatten(2) > 0
        allowed = allowed | ~allowed.any(-1, keepdim=True)
        return torch.cat([allowed, torch.ones_like(allowed[:, :1])], dim=1)  # the residual: all

    def _encode_mixture(self, mixture: Tensor) -> MixtureFeatures:
        spectra = spectrum(_levelled(mixture)[0])[:, :-1, :-1]
        heard: MixtureFeatures = self.separator.encode_mixture(compressed(spectra))
        return heard

    def decode_voices(
        self, inputs: Inputs, looked: SlotPredictions, masks: Tensor, there: Tensor | None = None
    ) -> VoicePredictions:
        """The voices of slots.

        Args:
            masks: [N, Q - 1, F, h, w], 0 to 1, where each slot's motion is read.
            there: [N, Q - 1], 0 to 1, how surely the slot is somebody; None: as its state says. A
                slot that is nobody has no voice: two slots may see the same pixels, and what
                their motion is heard as cannot be told to be silent for one of them.
        """
        c = self.config
        if there is None:
            there = self.presence_prob(looked)
        moves = self.reader(looked.motion, masks)  # [N, Q - 1, T, D]
        moves = moves * there[..., None, None].to(moves.dtype)
        moves = torch.cat([moves, torch.zeros_like(moves[:, :1])], dim=1)
        heard = self.heard_norm(self.heard(looked.mixture_features.latent))
        steps = cast(Tensor, self.steps)
        # A voice is what its slot's pixels move like, not what they look like: told what slots
        # hold, voices learned by heart who of few people in training sounds how.
        known = functional.pad(self.known(looked.voice_cue)[:, None], (0, 0, 0, c.slots - 1))
        x = known[:, :, None] + moves + heard[:, None]
        place = (self.slot.weight[None, :, None] + steps[:, None]).flatten(1, 2)
        x = x.flatten(1, 2)
        for layer in self.voice_layers:
            x = layer(x, place, heard, steps)
        x = self.voice_norm(x).unflatten(1, (c.slots, -1))
        states = looked.states[-1] + self.state_head(x.mean(2))
        when = self.when(x)[..., 0]
        raw = self.separator.estimate_masks(looked.mixture_features, x[:, :-1])
        with torch.autocast(raw.device.type, enabled=False):
            levelled, scale = _levelled(inputs.mixture.float())
            claims = self._activity_share(when, there, raw.shape[-1])
            own = bounded(raw.float()) * claims[:, :-1, None, None]
            spectra = masked_voices(spectrum(levelled), own, claims)
        return VoicePredictions(spectra, states, when, scale[..., None])

    @staticmethod
    def _activity_share(when: Tensor, there: Tensor, frames: int) -> Tensor:
        """How surely slots are heard, and somebody unseen is, at the spectrum's rate: [N, Q, T'].

        A voice is cut out by when its pixels talk before it is by what is said: a silent person
        claims nothing, and takes nothing. Without gradient: claims are to say who is heard, not
        what makes the SDR better at once (with it, and a weight of 0.3, their cross-entropy rose
        above that of a coin).
        """
        heard = when.detach().float().sigmoid()
        people = heard[:, :-1] * there.float()[..., None]
        claims = torch.cat([people, heard[:, -1:] + LEAST_CLAIM], dim=1)
        return at_spectrum_rate(claims[..., None], frames)[:, :, 0]

    @staticmethod
    def presence_prob(looked: SlotPredictions) -> Tensor:
        """How surely each slot is somebody, by its state: [N, Q - 1], without gradient."""
        return 1 - looked.states[-1][:, :-1].detach().float().softmax(-1)[..., NONE]

    def forward(self, inputs: Inputs) -> tuple[SlotPredictions, VoicePredictions]:
        """People and voices, each voice from the pixels of its own mask."""
        looked = self.predict_masks(inputs)
        return looked, self.decode_voices(inputs, looked, looked.masks[-1].sigmoid().detach())


def _levelled(mixture: Tensor) -> tuple[Tensor, Tensor]:
    """A mixture [N, S] at an RMS of 1, and what it was divided by [N, 1]; silence stays silence."""
    scale = mixture.square().mean(1, keepdim=True).sqrt().clamp(min=QUIETEST)
    return mixture / scale, scale
