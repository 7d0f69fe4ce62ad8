"""Matching of separated voices to a reference voice."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cavmae.common.boxes import WHOLE
from cavmae.common.errors import CavmaeError
from cavmae.datasets.stream.features import fbank_batch
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.inference.detections import DetectedPerson
from cavmae.finetune.inference.first_pass import Sighting, _voice_distance
from cavmae.finetune.inference.predictor import Cue, WindowPredictor
from cavmae.finetune.inference.selection import match_reference_voice
from cavmae.finetune.speaker.cues import KINDS, no_cues
from cavmae.finetune.speaker.model_tensors import Inputs
from cavmae.finetune.speaker.settings import LossSettings
from cavmae.finetune.speaker.task import SpeakerTask
from cavmae.finetune.speaker.voice_matching import distances, target_to_slot0
from tests.finetune.speaker.scenes import ENCODER, SHAPE, model

RATE = 16_000
VOICE = KINDS.index("voice")


def voice(
    pitch: float, middle: float, seed: int, seconds: float = 2.56, level: float = 0.1
) -> Tensor:
    """Syllables of a pitch with a formant, other ones for every seed: [S]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    glide = pitch * np.exp(0.1 * np.sin(2 * np.pi * rng.uniform(1, 3) * time + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(glide) / RATE
    samples = np.zeros_like(time)
    for number in range(1, 40):
        frequency = number * pitch
        shift = middle * rng.uniform(0.9, 1.1)
        samples += np.exp(-(((frequency - shift) / 600) ** 2)) * np.sin(number * phase)
    loud = np.clip(np.sin(2 * np.pi * rng.uniform(2, 4) * time + rng.uniform(0, 6)), 0, 1)
    samples = samples * loud + 1e-3 * rng.normal(size=len(time))
    return torch.from_numpy((level * samples / samples.std()).astype(np.float32))


def fbanks(waves: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(waves, (0, 240))
    return fbank_batch(padded.flatten(0, -2)).unflatten(0, waves.shape[:-1])


@pytest.mark.parametrize("level", [0.001, 0.1])
def test_a_voice_is_nearest_to_itself_whatever_it_says_and_how_loud(level: float) -> None:
    kinds = [(110, 700), (150, 1500), (210, 900), (250, 2200)]
    said = torch.stack([voice(*kind, seed=n) for n, kind in enumerate(kinds)])
    elsewhere = torch.stack(
        [voice(*kind, seed=50 + n, level=level) for n, kind in enumerate(kinds)]
    )
    apart = distances(fbanks(said)[None].expand(4, -1, -1, -1), fbanks(elsewhere))
    assert apart.argmin(1).tolist() == [0, 1, 2, 3]


def cued(task: SpeakerTask, reference: Tensor, kind: str = "voice") -> Inputs:
    torch.manual_seed(0)
    n = len(reference)
    h, w = ENCODER.image_size
    wave = torch.randn(n, SHAPE.samples) * 0.1
    cues = no_cues(n, ENCODER.image_grid, ENCODER.audio_size[::-1], torch.device("cpu"))
    return Inputs(
        mixture=wave,
        fbank=task.fbank(wave),
        frames=torch.randint(0, 256, (n, SHAPE.key_frames, h, w, 3), dtype=torch.uint8),
        motion=torch.randint(0, 256, (n, SHAPE.frames, *SHAPE.motion_size), dtype=torch.uint8),
        cues=cues._replace(kind=torch.full((n,), KINDS.index(kind)), voice=task.fbank(reference)),
        hint=torch.zeros(n, dtype=torch.int64),
    )


@torch.no_grad()
def test_slot_0_has_the_voice_nearest_to_the_reference() -> None:
    task = SpeakerTask(model(), LossSettings(), Statistics(-6.0, 4.0)).eval()
    inputs = cued(task, torch.stack([voice(110, 700, n, SHAPE.seconds) for n in range(5)]))
    predictions, voices = task.model(inputs)
    slots = SHAPE.slots
    # Each clip has four voices in an order of its own; the first three are audible.
    kinds = [(250, 2200, 0.1), (110, 700, 0.1), (210, 900, 0.1), (110, 700, 0.0001)]
    order = [torch.randperm(slots - 1).tolist() for _ in range(5)]
    waves = torch.zeros(5, slots, SHAPE.samples)
    for row, places in enumerate(order):
        for place, (pitch, middle, level) in zip(places, kinds, strict=False):
            waves[row, place] = voice(pitch, middle, 70 + row, SHAPE.seconds, level)
    states = torch.tensor([3.0, 0.0, -3.0, -3.0]).repeat(5, slots, 1)
    states += torch.arange(slots)[None, :, None] / 100  # so that slots differ
    states[3, order[3][1]] = torch.tensor([-3.0, -3.0, -3.0, 3.0])  # no person: not a candidate
    kind = inputs.cues.kind.clone()
    kind[4] = KINDS.index("box")
    inputs = inputs._replace(cues=inputs.cues._replace(kind=kind))
    voices = voices._replace(states=states)
    swapped_predictions, swapped_voices = target_to_slot0(
        inputs, predictions, voices, waves, task.fbank(waves.flatten(0, 1)).unflatten(0, (5, slots))
    )
    for row in range(5):
        place = order[row][1] if row < 3 else 0
        if row == 3:
            place = next(
                p
                for p in (order[3][0], order[3][2])
                if torch.equal(swapped_voices.states[3, 0], states[3, p])
            )
        swapped = list(range(slots))
        swapped[0], swapped[place] = place, 0
        torch.testing.assert_close(swapped_voices.states[row], states[row, swapped])
        torch.testing.assert_close(swapped_voices.spectra[row], voices.spectra[row, swapped])
        torch.testing.assert_close(
            swapped_voices.activity_logits[row], voices.activity_logits[row, swapped]
        )
        torch.testing.assert_close(
            swapped_voices.articulation[row], voices.articulation[row, swapped[:-1]]
        )
        torch.testing.assert_close(swapped_predictions.slots[row], predictions.slots[row, swapped])
        for before, after in zip(predictions.masks, swapped_predictions.masks, strict=True):
            torch.testing.assert_close(after[row], before[row, swapped[:-1]])
        for before, after in zip(predictions.states, swapped_predictions.states, strict=True):
            torch.testing.assert_close(after[row], before[row, swapped])


@torch.no_grad()
def test_predictions_begin_with_the_nearest_voice() -> None:
    speaker_model = model()
    speaker_model.state_head[-1].bias.copy_(torch.tensor([3.0, 0.0, -3.0, -3.0]))
    task = SpeakerTask(speaker_model, LossSettings(), Statistics(-6.0, 4.0)).eval()
    inputs = cued(task, torch.stack([voice(110, 700, n, SHAPE.seconds) for n in range(3)]))
    _, voices = task.predict(inputs)
    waves = voices.waves(SHAPE.samples)[:, :-1]
    power = waves.square().mean(-1)
    apart = distances(
        task.fbank(waves.flatten(0, 1)).unflatten(0, waves.shape[:2]), inputs.cues.voice
    )
    audible = power >= 0.01 * power.amax(1, keepdim=True)
    assert (apart.masked_fill(~audible, torch.inf).argmin(1) == 0).all()
    # The voices are those without a reference, in another order.
    uncued = inputs._replace(cues=inputs.cues._replace(kind=torch.zeros_like(inputs.cues.kind)))
    without = task.model(uncued)[1].waves(SHAPE.samples)[:, :-1]
    loud = without.square().mean(-1)
    torch.testing.assert_close(power.sort(1).values, loud.sort(1).values)
    plain = cued(task, inputs.mixture, "none")
    for output, expected in zip(task.predict(plain), task.model(plain), strict=True):
        torch.testing.assert_close(output.states, expected.states)


def sighting(power: float, unlike: float | None) -> Sighting:
    return Sighting(0, 0.9, (0, 0, 1, 1), (1, 1, 1), 0, None, False, power, unlike)


def test_loud_windows_decide_the_target_of_a_recording() -> None:
    people = {
        # Audible once, among hours of silence.
        1: [sighting(1.0, 0.2), *[sighting(1e-4, 0.9)] * 500],
        2: [sighting(1.0, 0.4), sighting(1.0, 0.3)] * 200,
        3: [sighting(1e-5, 0.0)],  # a faint copy of another voice
        4: [sighting(1.0, None)],  # too short to be compared
        5: [sighting(1.0, 0.5), *[sighting(1.0, None)] * 9],  # which counts as no distance
    }
    assert list(match_reference_voice(people)) == [1]
    with pytest.raises(CavmaeError, match="No person has an audible voice"):
        match_reference_voice({1: [sighting(0.0, 0.1)]})


def test_windows_measure_the_distance_of_voices() -> None:
    predictor = WindowPredictor(model(), Statistics(-6.0, 4.0))
    same, different = voice(110, 700, 0).numpy(), voice(230, 2000, 0).numpy()
    reference = voice(110, 700, 9).numpy()
    assert predictor.voice_distance(same, reference) < predictor.voice_distance(
        different, reference
    )
    assert (
        predictor.voice_distance(reference * 0.1, reference)
        < predictor.voice_distance(different, reference) / 10
    )


def test_a_voice_within_a_shot_is_compared_without_the_silence_around_it() -> None:
    predictor = WindowPredictor(model(), Statistics(-6.0, 4.0))
    spoken = voice(110, 700, 0, seconds=0.4).numpy()
    reference = voice(110, 700, 9).numpy()
    cue = Cue("voice", voice=reference)
    gated = np.zeros(round(2.56 * RATE), dtype=np.float32)
    gated[8000 : 8000 + len(spoken)] = spoken

    def person_with(wave: np.ndarray) -> DetectedPerson:
        masks, colors = np.zeros((4, 2, 2), np.uint8), np.zeros((4, 5, 2, 3), np.float32)
        still = np.zeros(64, np.float32)
        return DetectedPerson(0, 0.9, still, WHOLE, masks, wave, colors, still)

    distance = predictor.voice_distance(spoken, reference)
    assert _voice_distance(predictor, person_with(gated), cue) == pytest.approx(distance, rel=1e-4)
    assert _voice_distance(predictor, person_with(np.where(gated > 9, gated, 0)), cue) is None
    assert _voice_distance(predictor, person_with(gated), Cue("box")) is None
