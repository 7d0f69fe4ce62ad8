"""Predictions of a trained speaker model: normalised fbanks in, checked masks and voices out."""

import torch
from torch import Tensor

from cavmae.common.allocator import trim_memory
from cavmae.common.errors import CavmaeError, NonFiniteError
from cavmae.datasets.stream.features import HOP, WINDOW, fbank_batch
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.speaker.cues import KINDS
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.speaker.model_tensors import Inputs, SlotPredictions, VoicePredictions
from cavmae.finetune.speaker.voice_matching import target_to_slot0

# Samples after a mixture's end that the windows of its last two fbank frames reach into.
FBANK_PADDING = WINDOW - HOP


class SpeakerPredictor:
    """A speaker model with the preprocessing and the checks of inference.

    Args:
        model: in evaluation mode, unless it is being trained.
        statistics: of fbanks, those that the encoder was trained with.
        returns_memory: whether freed activations go back to the system after each step. Left on the
            heap they are 0.3 GB of `base` (docs/benchmarks/separate.md).
    """

    def __init__(self, model: SpeakerModel, statistics: Statistics, returns_memory: bool = False):
        self.model = model
        self.statistics = statistics
        self.returns_memory = returns_memory

    def end_step(self) -> None:
        """Returns freed activations to the system, if :attr:`returns_memory`."""
        if self.returns_memory:
            trim_memory()

    def fbank(self, waves: Tensor) -> Tensor:
        """Normalised fbanks of mixtures: [N, S] -> [N, S / 160, mel]."""
        with torch.autocast(waves.device.type, enabled=False):
            fbanks = fbank_batch(torch.nn.functional.pad(waves.float(), (0, FBANK_PADDING)))
            return (fbanks - self.statistics.mean) / self.statistics.std

    def predict(
        self, inputs: Inputs, min_voice_prob: float = 0.0
    ) -> tuple[SlotPredictions, VoicePredictions]:
        """:meth:`predict_masks`, then :meth:`predict_voices` under these masks."""
        return self.predict_voices(inputs, self.predict_masks(inputs), min_voice_prob)

    def predict_masks(self, inputs: Inputs) -> SlotPredictions:
        """Masks and states of all slots.

        The model does not get a voice cue: from 43 minutes of speech it learned too little about
        voices, and its masks and voices were worse with the cue than without
        (docs/benchmarks/speakers-small.md).

        Raises:
            CavmaeError: the audio has NaN or Inf.
        """
        check_finite_audio(inputs.mixture)
        predictions = self.model.predict_masks(_without_voice_cue(inputs))
        self.end_step()
        return predictions

    def predict_voices(
        self, inputs: Inputs, predictions: SlotPredictions, min_voice_prob: float = 0.0
    ) -> tuple[SlotPredictions, VoicePredictions]:
        """Voices of all slots under their masks.

        A voice cue is matched to the separated voices, whose nearest becomes slot 0: see
        :mod:`cavmae.finetune.speaker.voice_matching`.

        Args:
            predictions: of :meth:`predict_masks`.
            min_voice_prob: see :meth:`SpeakerModel.decode_voices`.

        Returns:
            the predictions, with the target in slot 0, and the voices.

        Raises:
            NonFiniteError: the model gives NaN or Inf.
        """
        voices = self.model.decode_under_own_masks(
            _without_voice_cue(inputs), predictions, min_voice_prob
        )
        self.end_step()
        _check_finite(predictions, voices)
        if not bool((inputs.cues.kind == KINDS.index("voice")).any()):
            return predictions, voices
        waves = voices.waves(inputs.mixture.shape[-1])
        fbanks = self.fbank(waves.flatten(0, 1)).unflatten(0, waves.shape[:2])
        return target_to_slot0(inputs, predictions, voices, waves, fbanks)


def _without_voice_cue(inputs: Inputs) -> Inputs:
    """Inputs in which clips with a voice cue have none."""
    kind = inputs.cues.kind.masked_fill(inputs.cues.kind == KINDS.index("voice"), 0)
    return inputs._replace(cues=inputs.cues._replace(kind=kind))


def check_finite_audio(waves: Tensor) -> None:
    """Raise CavmaeError for audio with NaN or Inf."""
    if not bool(torch.isfinite(waves).all()):
        raise CavmaeError("The audio has NaN or Inf: convert it to 16 bits.")


def _check_finite(predictions: SlotPredictions, voices: VoicePredictions) -> None:
    """Raise NonFiniteError for NaN or Inf: NaN exceeds no threshold and would read as silence."""
    outputs = (
        *voices._replace(spectra=torch.view_as_real(voices.spectra)), predictions.masks[-1],
        predictions.votes,
    )  # fmt: skip
    # The extremes are NaN where any value is, and take one pass.
    extremes = torch.stack([end for output in outputs for end in output.aminmax()])
    if not bool(extremes.isfinite().all()):
        raise NonFiniteError(
            "The model gives NaN or Inf: its weights or its statistics are damaged, so copy the "
            "model again; if this is not fp32, try --precision fp32."
        )
