"""Speaker model: one segmentation mask and one voice per slot, under one index.

Audio queries follow AVSegFormer (AAAI 2024), query-based separation follows IQuery (CVPR 2023); the
encoder is CAV-MAE's. The mask of slot k selects the motion features from which voice k is decoded:
an articulation cue is read from them, by which a sound separator extracts the voice. Beside the cue
only the slot's presence probability and a reference voice enter its voice. The last slot is the
residual: noise, and voices of people who are off-screen.

Legend of shapes:
    N: clips of 2.56 s          S: samples, 40,960           T: video frames of 40 ms, 64
    F: key frames               H, W: pixels of key frames   h, w: pixels of grey frames
    Q: slots, residual last     D: width of slots            E: width of the encoder
    L: tokens of a key frame    La: tokens of audio          C: channels of motion
    B: bins of the STFT         T': frames of the STFT
Masks have H / 4 x W / 4 pixels.
"""

import dataclasses
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.common.interpolation import average_squares, interpolate_linearly
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.stream.transforms import normalise_frames
from cavmae.finetune.laterals.base import Lateral, PathwayShape
from cavmae.finetune.laterals.settings import LATERALS
from cavmae.finetune.motion.settings import MOTION
from cavmae.finetune.separation.model import SoundSeparator
from cavmae.finetune.separators.base import MixtureFeatures
from cavmae.finetune.speaker.center_voting import CenterVoting
from cavmae.finetune.speaker.config import SpeakerConfig
from cavmae.finetune.speaker.cues import KINDS, CueEncoder, HintEmbedding
from cavmae.finetune.speaker.decoder import SlotLayer, mlp_head
from cavmae.finetune.speaker.head_reader import HeadReader
from cavmae.finetune.speaker.model_tensors import (
    NONE,
    QUIETEST,
    STATES,
    Inputs,
    MixtureEncoding,
    SlotPredictions,
    VoicePredictions,
)
from cavmae.finetune.speaker.motion_reader import ArticulationHead, MotionReader
from cavmae.finetune.speaker.pixel_decoders.settings import PIXEL_DECODERS
from cavmae.finetune.speaker.queries import CrossModalMixer, QueryGenerator
from cavmae.pretrain.blocks import NORM_EPS
from cavmae.pretrain.encoder import Encoder
from cavmae.pretrain.engine.hub import HubWeights
from cavmae.pretrain.positions import sin_cos, sin_cos_positions


class SpeakerModel(HubWeights, library_name="cavmae", tags=["audio-visual"]):
    """Audio-visual speaker separation and segmentation; see the module's docstring.

    Args:
        config: of the model.
    """

    model_type = "speaker"
    config_class = SpeakerConfig
    config: SpeakerConfig

    def __init__(self, config: SpeakerConfig):
        super().__init__()
        self.config = config
        c, e = config, config.encoder
        grid = e.image_grid
        # Modules are created in this order so that a seed gives the same initial weights.
        self.encoder = Encoder(e)
        self.encoder.initialise()
        self.motion = MOTION.build(c.motion)
        self.sound = SoundSeparator(c.sound)
        if c.samples < self.sound.separator.least_samples:
            raise ValueError(
                f"separator {c.sound.separator.name} needs clips of at least "
                f"{self.sound.separator.least_samples / SAMPLE_RATE} s, not {c.seconds} s."
            )
        pathways = PathwayShape(
            self.motion.channels, e.width, c.frames, c.key_frames, c.mask_width // 2
        )
        self.lateral: Lateral = LATERALS.build(c.lateral, pathways)
        self.pixel_decoder = PIXEL_DECODERS.build(
            c.pixel_decoder, e.width, self.lateral.key_channels, c.mask_width, grid
        )
        self.audio_proj = nn.Linear(e.width, c.width)
        self.video_proj = nn.Linear(e.width, c.width)
        self.context_proj = nn.Linear(4 * c.mask_width, c.width)
        self.audio_norm = nn.LayerNorm(c.width, eps=NORM_EPS)
        self.video_norm = nn.LayerNorm(c.width, eps=NORM_EPS)
        self.query_generator = QueryGenerator(c.slots, c.width, c.query_layers, c.heads)
        # AVSegFormer's second table of queries: positions of the slots in every attention.
        self.slot_pos = nn.Embedding(c.slots, c.width)
        self.hint_embed = HintEmbedding(len(c.classes), c.width)
        self.cue_encoder = CueEncoder(c.width, e.width)
        self.mixer_query = nn.Linear(c.width, c.mask_width)
        self.mixer = CrossModalMixer(c.mask_width, 4)
        self.slot_layers = nn.ModuleList(SlotLayer(c.width, c.heads) for _ in range(c.slot_layers))
        self.mask_head = mlp_head(c.width, c.width, c.mask_width)
        self.center_voting = CenterVoting(c.width, c.mask_width, c.slots - 1)
        self.state_head = mlp_head(c.width, c.width, len(STATES))
        self.motion_reader = (
            HeadReader(c.head_motion, c.head_size, c.width)
            if c.head_size
            else MotionReader(self.motion.channels, c.width)
        )
        self.articulation_head = ArticulationHead(c.width, c.sound.cue_channels)
        self.voice_state_head = mlp_head(c.sound.width, c.sound.width, len(STATES))
        self.residual_state_head = nn.Linear(self.sound.separator.latent_width, len(STATES))
        self.voice_cue_proj = nn.Linear(c.width, c.sound.width, bias=False)
        patch_pos = sin_cos_positions(c.width, grid)[:, None]  # [1, 1, L, D]
        times = sin_cos(c.width, torch.arange(c.key_frames) * c.frames / c.key_frames).float()
        token_pos = (patch_pos + times[None, :, None]).flatten(1, 2)
        self.register_buffer("token_pos", token_pos, False)  # [1, F L, D]

    def add_classes(self, names: Sequence[str]) -> None:
        """Append classes to those of the configuration; each starts as no class.

        Raises:
            ValueError: a name is empty, or there already.
        """
        classes = (*self.config.classes, *names)
        self.config = dataclasses.replace(self.config, classes=classes)
        self.hint_embed.add_classes(len(names))

    def forward(
        self, inputs: Inputs, min_voice_prob: float = 0.0
    ) -> tuple[SlotPredictions, VoicePredictions]:
        """Predict masks, then decode each slot's voice from the motion under its own mask.

        Args:
            min_voice_prob: see :meth:`decode_voices`.
        """
        predictions = self.predict_masks(inputs)
        return predictions, self.decode_under_own_masks(inputs, predictions, min_voice_prob)

    def decode_under_own_masks(
        self, inputs: Inputs, predictions: SlotPredictions, min_voice_prob: float = 0.0
    ) -> VoicePredictions:
        """:meth:`decode_voices` under the masks of :meth:`predict_masks`."""
        masks = predictions.masks[-1].sigmoid().detach()
        return self.decode_voices(inputs, predictions, masks, min_voice_prob=min_voice_prob)

    def encode_mixture(self, mixture: Tensor, fbank: Tensor) -> MixtureEncoding:
        """Encoding of mixtures [N, S] and their fbanks, to be used with several videos."""
        tokens = self.encoder.audio_features(fbank)
        return MixtureEncoding(tokens, self._sound_features(mixture)[2])

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Tokens [N, F, L, E] of key frames uint8 [N, F, H, W, 3].

        Those of a frame depend on no other frame unless the encoder mixes them
        (:attr:`EncoderConfig.mixes_frames`), so that windows which share frames can share them.
        """
        return self.encoder.frame_features(normalise_frames(frames))

    def _sound_features(self, mixture: Tensor) -> tuple[Tensor, Tensor, MixtureFeatures]:
        """Mixture at an RMS of 1, its divisor, and its features."""
        with torch.autocast(mixture.device.type, enabled=False):
            mixture, scale = _normalize_rms(mixture.float())
        return mixture, scale, self.sound.separator.features(mixture)

    # --- masks ---

    def encode(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of audio [N, La, E], of key frames [N, F, L, E], of cues' voices [N, La, E]."""
        frozen = not next(self.encoder.blocks_v.parameters()).requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            if inputs.encoding is None:
                fbanks = torch.cat([inputs.fbank, inputs.cues.voice])  # [2 N, 4 T, mel]
                audio_tokens, cue_tokens = self.encoder.audio_features(fbanks).chunk(2)
            else:
                audio_tokens = inputs.encoding.tokens
                cue_tokens = torch.zeros_like(audio_tokens)
                if bool((inputs.cues.kind == KINDS.index("voice")).any()):  # else none of it counts
                    cue_tokens = self.encoder.audio_features(inputs.cues.voice)
            frame_tokens = inputs.frame_tokens
            if frame_tokens is None:
                frame_tokens = self.encode_frames(inputs.frames)
        return audio_tokens, frame_tokens, cue_tokens

    def predict_masks(self, inputs: Inputs, audio_gate: Tensor | None = None) -> SlotPredictions:
        """Masks and states of all slots, refined layer by layer.

        Args:
            audio_gate: float [N], factors of the laterals from audio in training; None: 1.
        """
        c = self.config
        n = len(inputs.mixture)
        audio_tokens, frame_tokens, cue_tokens = self.encode(inputs)
        frames = normalise_frames(inputs.frames)  # [N, F, 3, H, W]
        motion = self.motion(self._pooled(inputs.motion))  # [N, T, C, h / 4, w / 4]
        fused = self.lateral(motion, frame_tokens, inputs.fbank, audio_gate)
        pixels, context = self.pixel_decoder(
            fused.tokens.flatten(0, 1), frames.flatten(0, 1), fused.key_motion.flatten(0, 1)
        )  # [N F, mask_width, H / 4, W / 4], [N F, L, 4 mask_width]
        audio = self.audio_norm(self.audio_proj(audio_tokens))  # [N, La, D]
        context = self.context_proj(context).unflatten(0, (n, -1))  # [N, F, L, D]
        video = self.video_norm(self.video_proj(frame_tokens) + context)  # [N, F, L, D]
        # Each key frame is mixed with the audio of its own time.
        rows, columns = c.encoder.audio_grid
        key_audio = audio.unflatten(1, (rows, columns)).mean(1).transpose(1, 2)  # [N, D, columns]
        key_audio = interpolate_linearly(key_audio, c.key_frames).transpose(1, 2)
        query = self.mixer_query(key_audio).flatten(0, 1)[:, None]  # [N F, 1, mask_width]
        mixed = self.mixer(pixels, query)  # [N F, mask_width, H / 4, W / 4]
        pixels = (pixels + mixed).unflatten(0, (n, -1))  # [N, F, mask_width, H / 4, W / 4]
        mixed = mixed.mean(1).unflatten(0, (n, -1))  # [N, F, H / 4, W / 4]

        slots = self.query_generator(audio)  # [N, Q, D]
        slot_pos = self.slot_pos.weight.expand(n, -1, -1)  # [N, Q, D]
        cue, voice_cue = self.cue_encoder(inputs.cues, video, cue_tokens)  # [N, D] each
        slots = slots + self.hint_embed(inputs.hint)[:, None]
        slots = torch.cat([slots[:, :1] + cue[:, None], slots[:, 1:]], dim=1)
        states: list[Tensor] = []
        masks: list[Tensor] = []
        attn_mask: Tensor | None = None
        votes = self.center_voting.votes(pixels)  # [N, 2, F, H / 4, W / 4]
        video = video.flatten(1, 2) + cast(Tensor, self.token_pos)  # [N, F L, D]
        for layer in self.slot_layers:
            slots = layer(slots, slot_pos, video, audio, attn_mask)
            logits = self._mask_logits(slots, pixels, votes, masks[-1] if masks else None)
            states.append(self.state_head(slots))
            masks.append(logits)
            attn_mask = self._attention_mask(logits.detach())
        return SlotPredictions(
            slots, voice_cue, states, masks, votes, mixed, fused.cue_motion, motion
        )

    def _mask_logits(
        self, slots: Tensor, pixels: Tensor, votes: Tensor, previous: Tensor | None
    ) -> Tensor:
        """Mask logits [N, Q - 1, F, H / 4, W / 4]: appearance plus votes for a slot's center."""
        mask_embed = self.mask_head(slots[:, :-1])  # [N, Q - 1, mask_width]
        appearance = torch.einsum("nqc,nfchw->nqfhw", mask_embed, pixels)
        vote_logits: Tensor = self.center_voting(slots[:, :-1], votes, previous)
        return appearance + vote_logits

    def _attention_mask(self, masks: Tensor) -> Tensor:
        """Attention mask of the next layer, as in Mask2Former: bool [N, Q, F L].

        A slot attends to the tokens under its mask, or to all of them if its mask is empty.
        """
        pooled = functional.avg_pool2d(masks.flatten(0, 1), 4).unflatten(0, masks.shape[:2])
        allowed = pooled.flatten(2) > 0  # [N, Q - 1, F L]
        allowed = allowed | ~allowed.any(-1, keepdim=True)
        return torch.cat([allowed, torch.ones_like(allowed[:, :1])], dim=1)  # the residual: all

    # --- voices ---

    def _pooled(self, grey: Tensor) -> Tensor:
        """Grey frames of :attr:`motion`: [N, T, h, w], averaged over squares of pixels."""
        pool = self.config.motion_pool
        return grey if pool == 1 else average_squares(grey.float(), pool)

    def slot_motion(self, grey: Tensor, motion: Tensor, masks: Tensor) -> Tensor:
        """Motion embedding of each slot, from its head or under its whole mask: [N, Q', T, D].

        Args:
            grey: uint8 [N, T, h, w], grey frames.
            motion: of :class:`SlotPredictions`.
            masks: [N, Q', F, h', w'], 0 to 1, of Q' slots.
        """
        if isinstance(self.motion_reader, HeadReader):
            return self.motion_reader(grey, masks)
        return self.motion_reader(motion, masks)

    def read_articulation(
        self, grey: Tensor, predictions: SlotPredictions, masks: Tensor
    ) -> Tensor:
        """Articulation cues [N, Q - 1, T, 4], from the motion of each slot.

        Args:
            grey: uint8 [N, T, h, w], grey frames.
            masks: [N, Q - 1, F, h', w'], 0 to 1.
        """
        cues: Tensor = self.articulation_head(self.slot_motion(grey, predictions.motion, masks))
        return cues

    def read_lips(self, grey: Tensor, masks: Tensor) -> Tensor:
        """Articulation cues [N, Q', T, 4] from grey frames alone, as before any lateral.

        Args:
            grey, masks: of :meth:`slot_motion`.
        """
        # Crops around heads need no motion of whole frames.
        motion = grey if self.config.head_size else self.motion(self._pooled(grey))
        cues: Tensor = self.articulation_head(self.slot_motion(grey, motion, masks))
        return cues

    def freeze_all_but_lips(self) -> None:
        """Freeze all weights that articulation cues are not read with."""
        self.requires_grad_(False)
        parts = [self.motion_reader, self.articulation_head]
        for part in parts if self.config.head_size else [*parts, self.motion]:
            part.requires_grad_(True)

    def freeze_lips(self) -> None:
        """Freeze the weights that only articulation cues are read with."""
        for part in (self.motion_reader, self.articulation_head):
            part.requires_grad_(False)

    def freeze_voices(self) -> None:
        """Freeze the sound separator and all weights beside it that only decode voices."""
        for part in (
            self.sound, self.voice_state_head, self.residual_state_head, self.voice_cue_proj
        ):  # fmt: skip
            part.requires_grad_(False)

    def decode_voices(
        self, inputs: Inputs, predictions: SlotPredictions, masks: Tensor,
        presence_prob: Tensor | None = None, min_voice_prob: float = 0.0,
    ) -> VoicePredictions:  # fmt: skip
        """Voices of all slots, from the motion under their masks.

        Args:
            masks: [N, Q - 1, F, h, w], 0 to 1, under which each slot's motion is read.
            presence_prob: [N, Q - 1], probability that the slot is a person; None: that of its
                state. A slot that is no person has no voice: where two slots cover the same pixels,
                their motion alone cannot say which of the two is to be silent.
            min_voice_prob: presence probability below which a slot's lips are not read and its
                state stays; where that is so in all clips, its voice is silence and takes no time.
        """
        if presence_prob is None:
            presence_prob = self.presence_prob(predictions)
        chosen: slice | Tensor = slice(None)
        read = presence_prob >= min_voice_prob
        if min_voice_prob > 0:
            chosen = read.any(0).nonzero()[:, 0]
            chosen = chosen if len(chosen) else chosen.new_zeros(1)
            masks = masks * read[..., None, None, None]
        articulation = self.read_articulation(inputs.motion, predictions, masks)
        if inputs.encoding is None:
            mixture, scale, features = self._sound_features(inputs.mixture)
        else:
            mixture, scale = _normalize_rms(inputs.mixture.float())
            features = inputs.encoding.features
        embeddings = self.sound.cue_encoder(articulation, features.latent)  # [N, Q - 1, T, D']
        # Voices do not get the slots' embeddings: with them the model memorised how the few people
        # of the training set sound, instead of reading their motion.
        voice_cue = self.voice_cue_proj(predictions.voice_cue)[:, None, None]
        slots = masks.shape[1]
        voice_cue = functional.pad(voice_cue, (0, 0, 0, 0, 0, slots - 1))  # slot 0 only
        visible = _covered(masks, articulation.shape[2])
        voices = self.sound.separate(
            mixture, features, (embeddings + voice_cue)[:, chosen], presence_prob[:, chosen],
            visible[:, chosen],
        )  # fmt: skip
        if not isinstance(chosen, slice):
            voices = voices.among(chosen, slots)
        refinements = [
            self.voice_state_head(embeddings.mean(2)) * read[..., None],  # [N, Q - 1, 4]
            self.residual_state_head(features.latent.mean(1, keepdim=True)),  # [N, 1, 4]
        ]
        states = predictions.states[-1] + torch.cat(refinements, dim=1)
        return VoicePredictions(
            voices.spectra, states, voices.activity_logits, articulation, scale[..., None]
        )

    @staticmethod
    def presence_prob(predictions: SlotPredictions) -> Tensor:
        """Probability that each slot is a person, by its state: [N, Q - 1], without gradient."""
        return 1 - predictions.states[-1][:, :-1].detach().float().softmax(-1)[..., NONE]


def _covered(masks: Tensor, frames: int) -> Tensor:
    """Whether a slot's mask covers a pixel: [N, Q - 1, F, h, w] -> bool [N, Q - 1, T].

    Args:
        masks: 0 to 1, of key frames; their largest values are interpolated between key frames, as
            :class:`MotionReader` does with masks.
        frames: T.
    """
    largest = masks.detach().float().flatten(3).amax(-1)
    return interpolate_linearly(largest, frames) > 0.5


def _normalize_rms(mixture: Tensor) -> tuple[Tensor, Tensor]:
    """Mixture [N, S] at an RMS of 1, and its divisor [N, 1]; silence stays silence."""
    scale = mixture.square().mean(1, keepdim=True).sqrt().clamp(min=QUIETEST)
    return mixture / scale, scale
