"""Laterals and the synchronisation loss in the speaker model and its training."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cavmae.common.errors import UsageError
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.laterals.settings import LATERALS, AudioFastSlowOptions, AudioLateralOptions
from cavmae.finetune.speaker.cues import KINDS
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.speaker.settings import LossSettings, SpeakerModelSettings, SpeakerSettings
from cavmae.finetune.speaker.task import SpeakerTask
from tests.finetune.speaker.scenes import SAMPLES, batch, model, task

WITH_AUDIO = [name for name in LATERALS if name != "none"]


def options(name: str, **changes: Any) -> AudioLateralOptions:
    entry: AudioLateralOptions = LATERALS.options(name)(**{"audio_width": 4} | changes)
    return entry


@pytest.mark.parametrize(
    ("name", "drop_prob", "sync_weight"),
    [*((name, x, x) for name in WITH_AUDIO for x in (0.0, 1.0)), ("a-fs", 1.0, 0.0)],
)
def test_every_weight_has_a_gradient(name: str, drop_prob: float, sync_weight: float) -> None:
    speaker_task = task(model(lateral=options(name, drop_prob=drop_prob)), sync_weight=sync_weight)
    output = speaker_task.training_step(batch(), 0.9, [], 0)
    output.loss.backward()
    assert ("sync" in output.logs) == (sync_weight > 0)
    for key, weight in speaker_task.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None and weight.grad.isfinite().all(), key
    pathway = speaker_task.model.lateral.audio
    assert pathway is not None and pathway.stem_time.weight.grad is not None
    # With audio dropped, the pathway learns from synchronisation alone, or not in this step.
    assert bool(pathway.stem_time.weight.grad.any()) == (drop_prob == 0 or sync_weight > 0)


@pytest.mark.parametrize("name", WITH_AUDIO)
def test_a_small_model_learns_a_batch(name: str) -> None:
    torch.manual_seed(0)
    speaker_task = task(model(lateral=options(name, drop_prob=0.2)), sync_weight=0.5)
    scenes = batch()
    optimizer = torch.optim.Adam(speaker_task.parameters(), 3e-3)
    losses = []
    for step in range(12):
        output = speaker_task.training_step(scenes, 0.5 + step / 24, [], 0)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(speaker_task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output.loss.detach()))
    assert min(losses[-5:]) < losses[0] - 1


def test_audio_is_dropped_in_training_only_and_never_where_the_target_is_a_voice() -> None:
    speaker_task = task(model(lateral=options("a-fs", drop_prob=1.0)))
    inputs, _ = speaker_task.inputs_of(batch(), 0.0)
    kind = torch.tensor([KINDS.index("box"), KINDS.index("voice")])
    cued = inputs._replace(cues=inputs.cues._replace(kind=kind))
    gate = speaker_task.audio_gate(cued, 0.3)
    assert gate is not None and gate.tolist() == [0, 1]
    assert speaker_task.eval().audio_gate(cued, 0.3) is None
    assert task().audio_gate(inputs, 0.3) is None  # no lateral, nothing to draw


def test_a_step_draws_once_for_all_processes_and_all_its_batches() -> None:
    def gates(seed: int) -> list[float]:
        small = model(lateral=options("a-fs", drop_prob=0.5))
        speaker_task = SpeakerTask(small, LossSettings(), Statistics(), seed=seed)
        inputs, _ = speaker_task.inputs_of(batch(1), 0.0)
        drawn = [speaker_task.audio_gate(inputs, step / 32) for step in range(32)]
        return [float(gate) for gate in drawn if gate is not None]

    torch.manual_seed(1)
    first = gates(5)
    torch.manual_seed(2)  # the random state of another process
    assert gates(5) == first
    assert gates(6) != first


@pytest.mark.parametrize("name", WITH_AUDIO)
def test_evaluation_uses_audio_and_repeats_itself(name: str, tmp_path: Path) -> None:
    saved = model(lateral=options(name, drop_prob=1.0)).eval()
    saved.save_pretrained(tmp_path)
    other = SpeakerModel.from_pretrained(tmp_path).eval()
    assert other.config == saved.config
    inputs, _ = task(saved).eval().inputs_of(batch(), 0.0)
    first, again = saved(inputs), other(inputs)
    assert torch.equal(first[0].masks[-1], again[0].masks[-1])
    assert torch.equal(first[1].waves(SAMPLES), again[1].waves(SAMPLES))
    without = saved.predict_masks(inputs, torch.zeros(2))
    assert not torch.allclose(first[0].masks[-1], without.masks[-1])


@pytest.mark.parametrize("audio_in_cue", [False, True])
def test_articulation_cues_get_audio_only_by_an_option(audio_in_cue: bool) -> None:
    """With the same masks, another mixture changes no cue that is read from pixels."""
    lateral = AudioFastSlowOptions(audio_width=4, audio_in_cue=audio_in_cue)
    speaker_model = task(model(lateral=lateral)).eval().model
    inputs, _ = task(speaker_model).inputs_of(batch(), 0.0)
    masks = torch.rand(2, 4, 2, 8, 12)
    cues = []
    for sign in (1, -1):
        changed = inputs._replace(fbank=sign * inputs.fbank)
        predictions = speaker_model.predict_masks(changed)
        cues.append(speaker_model.decode_voices(inputs, predictions, masks).articulation)
        assert (predictions.motion is predictions.visual_motion) != audio_in_cue
    assert torch.equal(*cues) != audio_in_cue


def test_without_a_lateral_a_model_has_the_weights_it_had() -> None:
    assert not [key for key in model().state_dict() if "lateral" in key]
    assert task().sync is None


@pytest.mark.parametrize("kind", ["silent", "single", "no masks", "absent"])
def test_synchronisation_without_a_pair(kind: str) -> None:
    """Also with one clip in the batch: easy negatives need another person, and there is none."""
    scenes = batch(1)
    if kind == "silent":
        scenes["voices"] = torch.zeros_like(scenes["voices"])
    elif kind == "single":
        scenes["present"][:, 1] = False
    else:
        scenes["masked" if kind == "no masks" else "present"][:] = False
    speaker_task = task(model(lateral=options("a-fs")), sync_weight=1.0)
    output = speaker_task.training_step(scenes, 0.1, [], 0)
    output.loss.backward()
    assert float(output.logs["sync"].detach()) == 0
    assert output.loss.isfinite()


def test_synchronisation_is_of_motion_under_the_true_mask_with_the_clean_voice() -> None:
    """Neither what lies outside people's masks nor the noise of the mixture counts."""
    speaker_task = task(model(lateral=options("a-f-s", drop_prob=0.0)), sync_weight=1.0).eval()
    received: list[tuple[torch.Tensor, ...]] = []
    sync = speaker_task.sync
    assert sync is not None
    sync.register_forward_pre_hook(lambda _, arguments: received.append(arguments))

    def streams(scenes: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        with torch.no_grad():
            speaker_task.training_step(scenes, 0.1, [], 0)
        return received[-1]

    scenes = batch()
    video, audio, log_mel, ids, audio_ids, usable, _ = streams(scenes)
    assert video.shape == (4, 16, 32) and audio.shape == (4, 16, 16)
    assert log_mel.shape[:2] == (4, 64)
    assert ids.tolist() == audio_ids.tolist() == [0, 1, 2, 3]
    assert usable.all()
    noisy = batch()
    noisy["mixture"] = noisy["mixture"] + 0.01 * torch.randn(noisy["mixture"].shape)
    other = streams(noisy)
    assert torch.equal(other[0], video) and torch.equal(other[1], audio)
    second = batch()
    second["voices"][0, 1] *= 0.1
    louder = streams(second)
    assert [torch.equal(x, y) for x, y in zip(audio, louder[1], strict=True)] == [
        True, False, True, True,
    ]  # fmt: skip
    elsewhere = batch()
    elsewhere["masks"][0, 0, :, :, 12:] = False
    moved = streams(elsewhere)[0]
    assert [torch.equal(x, y) for x, y in zip(video, moved, strict=True)] == [
        False, True, True, True,
    ]  # fmt: skip


def test_synchronisation_needs_an_audio_pathway() -> None:
    with pytest.raises(UsageError, match=r"set model\.lateral to a-f-s"):
        task(sync_weight=0.1)


def test_frozen_pathways_cannot_be_synchronised() -> None:
    added = SpeakerModelSettings(init_from="x", add_classes=("child",), freeze="trunk")
    with pytest.raises(UsageError, match=r"set loss\.sync_weight to 0"):
        SpeakerSettings(model=added, loss=LossSettings(sync_weight=0.1))
