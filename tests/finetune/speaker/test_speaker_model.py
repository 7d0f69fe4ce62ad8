"""The speaker model as a whole: shapes, index, cues, losses, gradients, weights in and out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cavmae.common.errors import UsageError
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.motion.settings import X3DOptions
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.separators.settings import SEPARATORS, FrozenTransformerOptions
from cavmae.finetune.speaker.config import SpeakerConfig
from cavmae.finetune.speaker.cues import KINDS, region_of
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.speaker.pixel_decoders.settings import PoolingOptions
from cavmae.finetune.speaker.settings import LossSettings
from cavmae.finetune.speaker.task import SpeakerTask
from tests.finetune.speaker.scenes import ENCODER, SAMPLES, SHAPE, batch, model, task

GRID = ENCODER.image_grid


@pytest.mark.parametrize("separator", sorted(SEPARATORS))
def test_every_slot_has_a_mask_a_state_and_a_voice(separator: str) -> None:
    sound = SoundSeparatorConfig(SEPARATORS.options(separator)(width=8), width=16)
    speaker_task = task(model(sound=sound))
    inputs, _ = speaker_task.inputs_of(batch(), cue_prob=0.0)
    predictions, voices = speaker_task.model(inputs)
    assert predictions.masks[-1].shape == (2, 4, 2, 8, 12)
    assert voices.states.shape == (2, 5, 4)
    waves = voices.waves(SAMPLES)
    assert waves.shape == (2, 5, SAMPLES)
    torch.testing.assert_close(waves.sum(1), batch()["mixture"], atol=1e-4, rtol=1e-3)


def test_clips_of_a_batch_do_not_know_of_each_other() -> None:
    speaker_task = task().eval()
    whole, _ = speaker_task.inputs_of(batch(3), cue_prob=0.0)
    predictions, voices = speaker_task.model(whole)
    single = type(whole)(*(
        type(x)(*(y[1:2] for y in x)) if isinstance(x, tuple) else None if x is None else x[1:2]
        for x in whole
    ))  # fmt: skip
    alone, voice = speaker_task.model(single)
    torch.testing.assert_close(alone.masks[-1], predictions.masks[-1][1:2], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(
        voice.waves(SAMPLES), voices.waves(SAMPLES)[1:2], atol=1e-4, rtol=1e-2
    )


def test_silence_in_silence_out() -> None:
    speaker_task = task()
    silent = batch()
    for name in ("mixture", "voices", "residual", "reference"):
        silent[name] = torch.zeros_like(silent[name])
    output = speaker_task.training_step(silent, 0.5, [], 0)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    inputs, _ = speaker_task.inputs_of(silent, 0.0)
    assert speaker_task.model(inputs)[1].waves(SAMPLES).abs().max() < 1e-6


def test_pixels_reach_a_voice_through_its_articulation_cue_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speaker_task = task().eval()
    inputs, _ = speaker_task.inputs_of(batch(), 0.0)
    predictions = speaker_task.model.predict_masks(inputs)
    masks = predictions.masks[-1].sigmoid()
    cue = torch.rand(2, 4, 16, 4)
    decode = speaker_task.model.decode_voices
    monkeypatch.setattr(speaker_task.model.articulation_head, "forward", lambda _: cue)
    presence_prob = torch.ones(2, 4)
    voices = decode(inputs, predictions, masks, presence_prob)
    moved = predictions._replace(motion=torch.randn_like(predictions.motion))
    assert torch.equal(decode(inputs, moved, masks, presence_prob).spectra, voices.spectra)
    scale = inputs.mixture.square().mean(1, keepdim=True).sqrt()
    separated = speaker_task.model.sound(inputs.mixture / scale, cue)
    torch.testing.assert_close(voices.spectra, separated.spectra)


def test_frames_without_a_mask_are_hidden_from_the_separator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speaker_task = task().eval()
    inputs, _ = speaker_task.inputs_of(batch(), 0.0)
    predictions = speaker_task.model.predict_masks(inputs)
    masks = torch.zeros_like(predictions.masks[-1])  # [2, 4, 2, 8, 12], of 16 frames
    masks[:, 0, :, 3, 3] = 0.9
    masks[:, 1, 0, 3, 3] = 0.9
    received = []
    separator = speaker_task.model.sound.separator
    estimate = separator.estimate

    def recording(features: Any, voices: Any, visible: Any) -> Any:
        received.append(visible)
        return estimate(features, voices, visible)

    monkeypatch.setattr(separator, "estimate", recording)
    speaker_task.model.decode_voices(inputs, predictions, masks)
    visible = received[0][0]
    assert visible.shape == (4, 16)
    assert visible[0].all() and not visible[2:].any()
    assert visible[1, :6].all() and not visible[1, 10:].any()


@pytest.mark.parametrize("kind", ["box", "voice"])
def test_a_voice_depends_on_motion_and_a_reference_voice_only(kind: str) -> None:
    speaker_task = task().eval()
    torch.manual_seed(0)
    inputs, _ = speaker_task.inputs_of(batch(), 1.0, (kind,))  # type: ignore[arg-type]
    predictions = speaker_task.model.predict_masks(inputs)
    masks = predictions.masks[-1].sigmoid()
    spectra = speaker_task.model.decode_voices(inputs, predictions, masks).spectra
    others = predictions._replace(slots=torch.randn_like(predictions.slots))
    assert torch.equal(speaker_task.model.decode_voices(inputs, others, masks).spectra, spectra)
    unknown = predictions._replace(voice_cue=torch.zeros_like(predictions.voice_cue))
    same = torch.equal(speaker_task.model.decode_voices(inputs, unknown, masks).spectra, spectra)
    assert same == (kind == "box")
    moved = predictions._replace(motion=torch.randn_like(predictions.motion))
    assert not torch.allclose(
        speaker_task.model.decode_voices(inputs, moved, masks).spectra, spectra
    )


def test_absent_people_have_no_voice() -> None:
    speaker_task = task().eval()
    inputs, _ = speaker_task.inputs_of(batch(), 0.0)
    predictions = speaker_task.model.predict_masks(inputs)
    masks = predictions.masks[-1].sigmoid()
    states = predictions.states[-1].clone()
    states[:, 1] = torch.tensor([0.0, 0.0, 0.0, 99.0])  # none
    states[:, 2] = torch.tensor([99.0, 0.0, 0.0, 0.0])
    predictions = predictions._replace(states=[states])
    waves = speaker_task.model.decode_voices(inputs, predictions, masks).waves(SAMPLES)
    assert waves[:, 1].abs().max() < 1e-30
    assert waves[:, 2].abs().max() > 1e-5
    without_people = speaker_task.model.decode_voices(
        inputs, predictions, masks, torch.zeros(2, 4)
    ).waves(SAMPLES)
    torch.testing.assert_close(without_people[:, -1], inputs.mixture, atol=1e-4, rtol=1e-3)


def test_voices_that_are_not_computed_are_silent_and_change_no_other() -> None:
    speaker_task = task().eval()
    inputs, _ = speaker_task.inputs_of(batch(), 0.0)
    predictions = speaker_task.model.predict_masks(inputs)
    masks = predictions.masks[-1].sigmoid()
    presence = torch.tensor([[0.9, 0.0, 0.3, 0.0], [0.8, 0.0, 0.0, 1e-9]])
    decode, computed = speaker_task.model.decode_voices, []
    separate = speaker_task.model.sound.separate
    speaker_task.model.sound.separate = lambda *a: computed.append(a[2].shape[1]) or separate(*a)
    every = decode(inputs, predictions, masks, presence)
    some = decode(inputs, predictions, masks, presence, min_voice_prob=1e-6)
    assert computed == [4, 2]
    torch.testing.assert_close(some.waves(SAMPLES), every.waves(SAMPLES), atol=1e-5, rtol=1e-4)
    read = torch.cat([presence >= 1e-6, torch.ones(2, 1, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(some.states[read], every.states[read])
    torch.testing.assert_close(some.states[~read], predictions.states[-1][~read])
    assert not some.spectra[:, [1, 3]].any()
    assert (some.activity_logits[:, [1, 3]].sigmoid() < 1e-3).all()
    nobody = decode(inputs, predictions, masks, torch.zeros(2, 4), min_voice_prob=0.5)
    assert computed[-1] == 1
    torch.testing.assert_close(nobody.waves(SAMPLES)[:, -1], inputs.mixture, atol=1e-4, rtol=1e-3)


def test_an_encoded_mixture_gives_the_same_predictions() -> None:
    model = task().eval().model
    inputs, _ = task().inputs_of(batch(), 0.0)
    with torch.no_grad():
        encoding = model.encode_mixture(inputs.mixture, inputs.fbank)
        expected, expected_voices = model(inputs)
        # Neither is computed again.
        model.sound.separator.encode_mixture = None  # type: ignore[method-assign, assignment]
        predictions, voices = model(inputs._replace(encoding=encoding))
    torch.testing.assert_close(predictions.masks[-1], expected.masks[-1])
    torch.testing.assert_close(voices.spectra, expected_voices.spectra)
    torch.testing.assert_close(voices.states, expected_voices.states)


def test_people_without_an_active_frame_have_no_voice() -> None:
    speaker_task = task().eval()
    inputs, _ = speaker_task.inputs_of(batch(), 0.0)
    torch.nn.init.constant_(speaker_task.model.sound.activity_head.bias, -30.0)
    _, voices = speaker_task.model(inputs)
    waves = voices.waves(SAMPLES)
    torch.testing.assert_close(waves[:, -1], inputs.mixture, atol=1e-4, rtol=1e-3)
    assert waves[:, :-1].abs().max() < 1e-6


def test_other_pathways_and_decoders_learn_and_are_saved(tmp_path: Path) -> None:
    motion, pixel_decoder = X3DOptions(width=8, depth=1), PoolingOptions(depth=1)
    speaker_task = task(model(motion=motion, pixel_decoder=pixel_decoder))
    optimizer = torch.optim.Adam(speaker_task.parameters(), 3e-3)
    scenes, logs = batch(), []
    for _ in range(25):
        output = speaker_task.training_step(scenes, 1.0, [], 0)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        logs.append({name: float(value.detach()) for name, value in output.logs.items()})
    assert logs[-1]["dice"] < 0.6 * logs[0]["dice"]
    assert logs[-1]["articulation"] < 0.3 * logs[0]["articulation"]
    speaker_task.model.save_pretrained(tmp_path)
    again = SpeakerModel.from_pretrained(tmp_path)
    assert (again.config.motion, again.config.pixel_decoder) == (motion, pixel_decoder)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_cue_changes_slot_0(kind: str) -> None:
    torch.manual_seed(0)
    speaker_task = task().eval()
    scenes = batch()
    inputs, _ = speaker_task.inputs_of(scenes, 0.0)
    uncued = speaker_task.model.predict_masks(inputs).masks[-1]
    torch.manual_seed(0)
    for _ in range(20):
        cued, target = speaker_task.inputs_of(scenes, 1.0)
        if int(cued.cues.kind[0]) == KINDS.index(kind):
            break
    else:
        pytest.fail(f"{kind} was never drawn")
    assert target.tolist() == [0, 0]
    changed = speaker_task.model.predict_masks(cued).masks[-1]
    assert (changed[0, 0] - uncued[0, 0]).abs().max() > 1e-4  # slot 0 itself


def test_hints_are_given_with_a_probability() -> None:
    speaker_task = task(model(classes=("woman", "child")))
    scenes = batch()
    assert speaker_task.inputs_of(scenes, 0.0)[0].hint.tolist() == [0, 0]
    inputs, _ = speaker_task.inputs_of(scenes, 0.0, hint_prob=1.0)
    assert inputs.hint.tolist() == [0, 2]
    without_hint = speaker_task.model.predict_masks(
        inputs._replace(hint=torch.zeros_like(inputs.hint))
    ).slots
    changed = speaker_task.model.predict_masks(inputs).slots
    torch.testing.assert_close(changed[0], without_hint[0])
    assert (changed[1] - without_hint[1]).abs().max() > 1e-3
    torch.manual_seed(0)
    hints_drawn = torch.stack(
        [speaker_task.inputs_of(scenes, 0.0, hint_prob=0.5)[0].hint[1] for _ in range(60)]
    )
    assert 0.3 < (hints_drawn == 2).float().mean() < 0.7
    speaker_task.training_step(scenes, 0.9, [], 0).loss.backward()
    assert speaker_task.model.hint_embed.weight.grad is not None


def test_the_curriculum(monkeypatch: pytest.MonkeyPatch) -> None:
    """First every scene has a cue, then each with a probability."""
    speaker_task = task(cue_only_until=0.4, cue_prob=0.0)
    cue_probs: list[float] = []
    inputs_of = speaker_task.inputs_of

    def recording(batch: dict, cue_prob: float, **options: float) -> object:  # type: ignore[type-arg]
        cue_probs.append(cue_prob)
        return inputs_of(batch, cue_prob, **options)

    monkeypatch.setattr(speaker_task, "inputs_of", recording)
    scenes = batch()
    for progress in (0.0, 0.39, 0.41, 1.0):
        speaker_task.training_step(scenes, progress, [], 0)
    assert cue_probs == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("below", [0.0, 1.0])
def test_voices_learn_from_true_masks_until_predicted_ones_are_right(
    below: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker_task = task(teacher_forcing_iou=below)
    read: list[torch.Tensor] = []
    decode_voices = speaker_task.model.decode_voices

    def recording(
        inputs: object, predictions: object, masks: torch.Tensor, presence_prob: object
    ) -> object:
        read.append(masks)
        return decode_voices(inputs, predictions, masks, presence_prob)  # type: ignore[arg-type]

    monkeypatch.setattr(speaker_task.model, "decode_voices", recording)
    scenes = batch()
    logs = speaker_task.training_step(scenes, 1.0, [], 0).logs
    assert float(logs["teacher_forced"]) == (1 if below else 0)
    true = torch.nn.functional.avg_pool2d(scenes["masks"].float().flatten(0, 1), 4)
    true = true.unflatten(0, scenes["masks"].shape[:2])
    apart = (read[0][:, None] - true[:, :, None]).abs().flatten(3).amax(-1)  # [N, P, Q']
    assert bool((apart.amin(2) < 1e-5).all()) == bool(below)


def test_a_cue_lies_on_its_person() -> None:
    scenes = batch()
    speaker_task = task()
    covered = torch.nn.functional.adaptive_avg_pool2d(
        scenes["masks"][:, 0, 0].float()[:, None], GRID
    )
    for seed in range(10):
        torch.manual_seed(seed)
        inputs, _ = speaker_task.inputs_of(scenes, 1.0)
        cues = inputs.cues
        for row in range(2):
            if cues.kind[row] == KINDS.index("voice"):
                assert not cues.region[row].any()
                continue
            inside = float(
                (cues.region[row] * (covered[row, 0] > 0)).sum() / cues.region[row].sum()
            )
            assert inside > 0.8
            assert (cues.box[row] >= 0).all()
            assert (cues.box[row] <= 1).all()


def test_regions_of_boxes_and_points() -> None:
    box = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.25, 1.0, 0.75], [0.99, 0.99, 0.99, 0.99]])
    region = region_of(box, (2, 4))
    assert region[0].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert region[1].tolist() == [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]]
    assert region[2].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    "box", [[0.5, 0, 0.4, 1], [0, 0, 1.2, 1], [-0.1, 0, 0.5, 1], [0, 0.9, 1, 0.1]]
)
def test_a_cue_outside_the_frame(box: list[float]) -> None:
    with pytest.raises(UsageError, match="lies outside the frame"):
        region_of(torch.tensor([box]), (2, 4))


def test_weights_come_back(tmp_path: Path) -> None:
    saved = model().eval()
    saved.save_pretrained(tmp_path)
    other = SpeakerModel.from_pretrained(tmp_path).eval()
    assert other.config == saved.config
    inputs, _ = task(saved).inputs_of(batch(), 0.0)
    torch.testing.assert_close(
        saved(inputs)[1].waves(SAMPLES), other(inputs)[1].waves(SAMPLES), atol=0, rtol=0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 1}, "at least 2"),
        ({"width": 30}, "multiple"),
        ({"motion_height": 10}, "motion_height"),
        ({"motion_width": 22}, "motion_width 22 is not a multiple of 4"),
        (
            {"sound": SoundSeparatorConfig(conditioning="binding")},
            "sound.conditioning binding: the speaker model extracts each voice by its cue",
        ),
    ],
)
def test_shapes_that_make_no_model(changes: dict[str, Any], message: str) -> None:
    values = {f: getattr(SHAPE, f) for f in SHAPE.__dataclass_fields__} | changes
    with pytest.raises(ValueError, match=message):
        SpeakerConfig(**values)


def test_layers_of_the_encoder_learn_more_slowly_the_deeper_they_lie() -> None:
    speaker_task = SpeakerTask(model(), LossSettings(), Statistics(), frozen=False, decay=0.5)
    assert speaker_task.lr_scale("model.slot_pos.weight") == 1
    order = ["patch_embed_a.proj.weight", "blocks_a.0.attn.qkv.weight", "blocks_u.0.mlp.fc1.bias",
             "norm_a.weight"]  # fmt: skip
    rates = [speaker_task.lr_scale(f"model.encoder.{name}") for name in order]
    assert rates == [0.125, 0.25, 0.5, 1.0]


def test_the_sound_separator_says_when_and_at_which_rate_its_layers_learn() -> None:
    separator = FrozenTransformerOptions(width=8, layers=1, unfreeze_from=0.5)
    sound = SoundSeparatorConfig(separator, width=16)
    speaker_task = SpeakerTask(model(sound=sound), LossSettings(), Statistics(), sound_lr_scale=0.5)
    block, out = (f"model.sound.separator.{name}" for name in ("blocks.0.norm1.bias", "out.weight"))
    assert [speaker_task.lr_scale(name) for name in (block, out)] == [0.5 * 0.035, 0.5]
    starts = [speaker_task.lr_start(name) for name in (block, out, "model.slot_pos.weight")]
    assert starts == [0.5, 0, 0]


@pytest.mark.long
def test_a_small_model_learns_a_batch() -> None:
    torch.manual_seed(0)
    speaker_task = task(teacher_forcing_iou=0.0)
    scenes = batch()
    optimizer = torch.optim.Adam(speaker_task.parameters(), 3e-3)
    initial = speaker_task.aggregate([speaker_task.validation_step(scenes)])
    losses = []
    for _ in range(120):
        output = speaker_task.training_step(scenes, 0.9, [], 0)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(speaker_task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output.loss.detach()))
    after = speaker_task.aggregate([speaker_task.validation_step(scenes)])
    assert losses[-1] < losses[0] - 1
    assert after["si_sdri"] > 15  # measured: 22 dB
    assert after["iou"] > initial["iou"] + 0.2


@pytest.mark.parametrize("size", [(16, 24), (32, 48)])
def test_half_precision_on_the_cpu(size: tuple[int, int]) -> None:
    """At the pixel decoder's own resolution and at another: losses near those of fp32."""
    speaker_task = task(model(motion_height=size[0], motion_width=size[1])).eval()
    scenes = batch()
    scenes["motion"] = scenes["motion"].repeat(1, 1, size[0] // 16, size[1] // 24)
    losses = []
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = speaker_task("training_step", scenes).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert all(p.grad.isfinite().all() for p in speaker_task.parameters() if p.grad is not None)


def test_multiply_adds_are_those_of_what_learns() -> None:
    """Each part that does not learn leaves its own out; masks alone are the least."""
    silent = LossSettings(articulation_weight=0)
    counts = [
        SpeakerTask(model(), loss, Statistics(), freeze_voices=freeze).flops_per_sample()
        for loss, freeze in ((silent, True), (LossSettings(), True), (LossSettings(), False))
    ]
    assert 0 < counts[0] < counts[1] < counts[2]
