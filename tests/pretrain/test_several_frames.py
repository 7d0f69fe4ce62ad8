"""Clips of several frames: positions in time, masked pretraining, weights to start from."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor

from cavmae.common.cli import run as run_command
from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.transforms import DeviceTransform, Statistics
from cavmae.finetune.motion.settings import ConvMotionOptions
from cavmae.finetune.speaker.factory import build_speaker, speaker_config
from cavmae.finetune.speaker.settings import EncoderSettings, SpeakerModelSettings
from cavmae.pretrain.cavmae_task import CAVMAETask, training_flops
from cavmae.pretrain.config import CAVMAEConfig, EncoderConfig, as_base_config
from cavmae.pretrain.data import views_for
from cavmae.pretrain.encoder import Encoder
from cavmae.pretrain.factory import build_model, model_config
from cavmae.pretrain.losses import reconstruction_loss
from cavmae.pretrain.model import CAVMAE, channels_last
from cavmae.pretrain.positions import interpolate_times
from cavmae.pretrain.settings import DataSettings, ModelSettings, ObjectiveSettings
from cavmae.pretrain.temporal.base import temporal_parameters
from cavmae.pretrain.temporal.settings import TEMPORAL, DividedOptions, TrajectoryOptions
from cavmae.pretrain.train import main
from cavmae.pretrain.weights import load_weights, move_positions
from cavmae.tools.convert import main as convert_main
from cavmae.tools.inpaint import main as inpaint_main
from cavmae.tools.retrieve import main as retrieve_main
from tests.pretrain.engine.running import trace, words

CONFIG = CAVMAEConfig(
    image_height=32, image_width=48, audio_frames=96, width=24, heads=2, depth=1,
    decoder_width=16, decoder_heads=2, decoder_depth=1,
)  # fmt: skip
NAMES = list(TEMPORAL)
FRAMES = 3


def config_of(name: str, frames: int = FRAMES, **changes: Any) -> CAVMAEConfig:
    return dataclasses.replace(CONFIG, temporal=TEMPORAL.options(name)(), frames=frames, **changes)


def model_of(name: str, frames: int = FRAMES, seed: int = 0, **changes: Any) -> CAVMAE:
    torch.manual_seed(seed)
    return CAVMAE(config_of(name, frames, **changes))


def batch_of(clips: int = 2, frames: int = FRAMES) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    return {
        "key": [f"k{n}" for n in range(clips)],
        "fbank": torch.randn(clips, 96, 128, generator=g).half() * 4 - 5,
        "fbank_length": torch.full((clips,), 96),
        "frames": torch.randint(256, (clips, frames, 32, 48, 3), generator=g).byte(),
    }


def noise() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.rand(2, 48, generator=g), torch.rand(2, 6, generator=g)


def clips(frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    """Fbanks [2, 96, 128] and frames [2 F, 3, 32, 48]."""
    g = torch.Generator().manual_seed(3)
    return torch.randn(2, 96, 128, generator=g), torch.randn(2 * frames, 3, 32, 48, generator=g)


@pytest.mark.parametrize("decoder", ["self", "cross"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_one_frame_is_a_per_frame_model_to_the_bit(name: str, decoder: Any) -> None:
    """Whether the model takes one frame at a time, or gets only one of several."""
    plain = model_of("per-frame", 1, decoder=decoder)
    expected = plain(*clips(1), *plain.mask(2, 0.5, 0.5, noise=noise()))
    for frames in (1, FRAMES):
        model = model_of(name, frames, seed=1, decoder=decoder)
        assert load_weights(model, plain.state_dict()) == []
        output = model(*clips(1), *model.mask(2, 0.5, 0.5, noise=noise()))
        assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))
    one = model_of(name, 1, decoder=decoder)
    assert not one.frame_positions()
    assert one.state_dict().keys() - temporal_parameters(one).keys() == plain.state_dict().keys()


def test_positions_of_frames_are_there_where_frames_mix() -> None:
    times = {name: set(model_of(name).frame_positions()) for name in NAMES}
    assert times.pop("per-frame") == {"decoder_pos_embed_t"}
    assert all(names == {"pos_embed_t", "decoder_pos_embed_t"} for names in times.values())
    encoder = Encoder(as_base_config(config_of("joint"), EncoderConfig))
    assert encoder.pos_embed_t is not None and encoder.pos_embed_t.shape == (1, FRAMES, 24)
    assert not encoder.pos_embed_t.any()
    per_frame = Encoder(as_base_config(config_of("per-frame"), EncoderConfig))
    assert per_frame.state_dict().keys() == encoder.state_dict().keys() - {"pos_embed_t"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "per-frame"])
@torch.no_grad()
def test_positions_tell_the_order_of_frames(name: str) -> None:
    model, frames, order = model_of(name).eval(), clips()[1].unflatten(0, (2, -1)), [2, 0, 1]
    result = model.frame_features(frames)
    torch.testing.assert_close(model.frame_features(frames[:, order]), result[:, order])
    assert model.pos_embed_t is not None
    model.pos_embed_t.normal_()
    result = model.frame_features(frames)
    assert not torch.allclose(model.frame_features(frames[:, order]), result[:, order], atol=1e-3)
    # A single frame has no place in time.
    torch.testing.assert_close(
        model.frame_features(frames[:, :1])[:, 0], model.image_features(frames[:, 0])
    )
    with pytest.raises(ValueError, match="takes clips of 3 frames or of one, not of 2"):
        model.frame_features(frames[:, :2])


def test_masks_of_frames() -> None:
    model = model_of("joint")
    audio, tube = model.mask(2, 0.5, 0.5, frames=FRAMES)
    assert audio.mask.shape == (2, 48) and tube.mask.shape == (6, 6)
    by_clip = tube.ids_keep.unflatten(0, (2, FRAMES))
    assert torch.equal(by_clip, by_clip[:, :1].expand_as(by_clip))
    own = model.mask(2, 0.5, 0.5, frames=FRAMES, frame_masks="independent")[1]
    assert own.mask.shape == (6, 6) and torch.all(own.mask.sum(1) == 3)
    torch.manual_seed(0)
    drawn = [model.mask(1, 0.5, 0.5, frames=2, frame_masks="independent")[1] for _ in range(5)]
    assert any(not torch.equal(*masking.mask) for masking in drawn)


@pytest.mark.parametrize("decoder", ["self", "cross"])
@torch.no_grad()
def test_losses_are_means_over_masked_patches_of_all_frames(decoder: Any) -> None:
    model, (fbank, image) = model_of("trajectory", decoder=decoder), clips()
    for positions in model.frame_positions().values():
        positions.normal_()
    masks = model.mask(2, 0.5, 0.5, frames=FRAMES, frame_masks="independent")
    output = model(fbank, image, *masks)
    a, v = model.patchify(fbank, image)
    predicted = model.reconstruct(model.forward_encoder(a, v, *masks))
    assert predicted[1].shape == (6, 6, 768)
    target = channels_last(v)
    hidden = masks[1].mask.bool()
    expected = reconstruction_loss(predicted[1][hidden], target[hidden], True)
    torch.testing.assert_close(output.video_loss, expected)
    assert output.video.shape == (2, 24)


@pytest.mark.parametrize("decoder", ["self", "cross"])
@torch.no_grad()
def test_the_decoder_knows_which_frame_it_reconstructs(decoder: Any) -> None:
    """And every visible patch of every frame counts."""
    model, (fbank, image) = model_of("per-frame", decoder=decoder), clips()
    image = image.unflatten(0, (2, -1))[:, :1].expand(-1, FRAMES, -1, -1, -1).flatten(0, 1)
    masks = model.mask(2, 0.5, 0.5, noise=noise(), frames=FRAMES)

    def predict(image: Tensor) -> Tensor:
        latents = model.forward_encoder(*model.patchify(fbank, image), *masks)
        return model.reconstruct(latents)[1].unflatten(0, (2, FRAMES))

    still = predict(image)
    torch.testing.assert_close(still, still[:, :1].expand_as(still))
    assert model.decoder_pos_embed_t is not None
    model.decoder_pos_embed_t.normal_()
    assert not torch.allclose(predict(image)[:, 0], predict(image)[:, 1], atol=1e-3)
    changed = image.clone()
    changed[FRAMES - 1] += 1  # the last frame of the first clip
    moved = predict(changed)
    assert not torch.allclose(moved[0, 0], predict(image)[0, 0], atol=1e-5)
    torch.testing.assert_close(moved[1], predict(image)[1])
    with pytest.raises(ValueError, match="reconstructs one frame of a clip, not 3"):
        model_of("joint", 1)(fbank, image, *masks)


@pytest.mark.parametrize("objective", [{}, {"mae_weight": 0}, {"contrastive_weight": 0},
                                       {"contrast_view": "whole"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_what_receives_gradients(name: str, objective: dict[str, Any]) -> None:
    task = CAVMAETask(
        model_of(name), ObjectiveSettings(**objective), DeviceTransform(Statistics()), FRAMES
    )
    task("training_step", batch_of(), 0.6).loss.backward()
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in task.named_parameters() if p.grad is not None}
    assert any("pos_embed_t" in name for name in trained) == (
        name != "per-frame" or objective.get("mae_weight") != 0
    )


@pytest.mark.parametrize("name", NAMES)
def test_activations_that_are_computed_again(name: str) -> None:
    """They are the same, random prototypes included; work is counted without any weights."""
    objective, gradients = ObjectiveSettings(), []
    for again in (False, True):
        task = CAVMAETask(model_of(name), objective, DeviceTransform(Statistics()), FRAMES).train()
        task.model.checkpoint_activations = again
        torch.manual_seed(0)
        task("training_step", batch_of(), 0.6).loss.backward()
        gradients.append([p.grad for p in task.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    one = training_flops(config_of(name, 1), objective)
    assert training_flops(config_of(name), objective, FRAMES) > one


@pytest.mark.parametrize(
    ("name", "decoder"), [*((name, "self") for name in NAMES), ("per-frame", "cross")]
)
def test_a_batch_is_learned(name: str, decoder: Any) -> None:
    task = CAVMAETask(
        model_of(name, decoder=decoder),
        ObjectiveSettings(contrastive_weight=0.1, temperature=0.5),
        DeviceTransform(Statistics()),
        FRAMES,
    )
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-2, weight_decay=0)
    losses = []
    for _ in range(15):
        torch.manual_seed(0)  # the same masks
        loss = task("training_step", batch_of(), 0.6).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.85 * losses[0]
    assert task.model.frame_positions()["decoder_pos_embed_t"].abs().sum() > 0


def test_positions_of_frames_move_to_another_number() -> None:
    positions = torch.arange(4.0).view(1, 4, 1)
    assert interpolate_times(positions, 4) is positions
    twice = interpolate_times(positions, 8)[0, :, 0]
    assert torch.allclose(twice, torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))
    model = model_of("divided", 4)
    with torch.no_grad():
        for parameter in model.frame_positions().values():
            parameter.normal_()
    weights = dict(model.state_dict())
    for frames in (1, 2, 4, 6):
        target = model_of("divided", frames, seed=1)
        moved = move_positions(weights, model.config, target.config)
        assert load_weights(target, moved) == []
        for name, parameter in target.frame_positions().items():
            assert torch.equal(parameter, interpolate_times(weights[name], frames))
    # A model of one frame that mixes those it is given has none to begin with.
    joint = model_of("divided", 4, seed=2)
    assert load_weights(joint, model_of("divided", 1).state_dict()) == []
    assert not any(parameter.any() for parameter in joint.frame_positions().values())


def settings_of(name: str, frames: int = FRAMES, **changes: Any) -> ModelSettings:
    config = config_of(name, frames)
    return ModelSettings(**{**config.__dict__, "contrast_width": 0, **changes})


def test_weights_that_start_another_attention(tmp_path: Path) -> None:
    folder = str(tmp_path / "per-frame")
    first = model_of("per-frame", 1, seed=4)
    first.save_pretrained(folder)
    for name in NAMES:
        model = build_model(settings_of(name, weights=folder), ObjectiveSettings(), 0)
        fresh = build_model(settings_of(name), ObjectiveSettings(), 0).state_dict()
        own = first.state_dict()
        for key, value in model.state_dict().items():
            assert torch.equal(value, own.get(key, fresh[key])), key
    trained = str(tmp_path / "trajectory")
    model_of("trajectory", 4).save_pretrained(trained)
    more = build_model(settings_of("trajectory", 6, weights=trained), ObjectiveSettings(), 0)
    assert more.config.frames == 6
    with pytest.raises(UsageError, match="temporal attention trajectory of 4 frames"):
        convert_main([trained, "--out", str(tmp_path / "published.pth")])
    for name in ("per-frame", "divided"):
        with pytest.raises(UsageError, match=rf"model.weights .* has temporal attention trajectory,"
                           rf" the model {name}: set model.temporal trajectory"):  # fmt: skip
            build_model(settings_of(name, weights=trained), ObjectiveSettings(), 0)
    partial = settings_of("per-frame", weights=trained, partial=True)
    assert build_model(partial, ObjectiveSettings(), 0).config.temporal.name == "per-frame"


def test_the_speaker_model_has_the_times_of_its_key_frames(tmp_path: Path) -> None:
    folder = str(tmp_path / "trajectory")
    model_of("trajectory", 4).save_pretrained(folder)
    encoder = EncoderSettings(temporal=TrajectoryOptions())
    settings = SpeakerModelSettings(
        encoder=encoder, encoder_from=folder, train_encoder="all", slots=3, width=16, heads=2,
        query_layers=1, slot_layers=1, mask_width=8, key_frames=2, motion_height=16,
        motion_width=16, motion=ConvMotionOptions(width=8, depth=1),
    )  # fmt: skip
    model = build_speaker(settings, (32, 48), 96, 0)
    assert (model.config.encoder.frames, model.config.encoder.temporal.name) == (2, "trajectory")
    assert model.encoder.pos_embed_t is not None and model.encoder.pos_embed_t.shape[1] == 2
    divided = dataclasses.replace(encoder, temporal=DividedOptions())
    for other in (divided, EncoderSettings()):
        with pytest.raises(UsageError, match=r"model.encoder_from .* model.encoder.temporal traj"):
            build_speaker(dataclasses.replace(settings, encoder=other), (32, 48), 96, 0)
    scratch = dataclasses.replace(settings, encoder_from=None, encoder=divided)
    assert speaker_config(scratch, (32, 48), 96).encoder.frames == 2
    wrong = dataclasses.replace(scratch, encoder=dataclasses.replace(encoder, frames=5))
    with pytest.raises(UsageError, match=r"model.encoder.frames 5: .*have 2; leave it out"):
        speaker_config(wrong, (32, 48), 96)


@pytest.mark.parametrize(
    ("data", "objective", "frames", "message"),
    [
        ({"frames": 2}, {}, 1, "data.frames 2, model.frames 1: .*must be equal"),
        ({}, {}, 2, "data.frames 1, model.frames 2"),
        ({"frames": 25, "window": 0.96}, {}, 25, "a window of 0.96 s has 24; make data.window"),
        ({"frames": 3, "window": 0.96}, {"aligned_weight": 1.0}, 3, "model.frames 3 would number"),
    ],
)
def test_frames_that_do_not_fit(
    data: dict[str, Any], objective: dict[str, Any], frames: int, message: str
) -> None:
    config = config_of("trajectory", frames, contrast_width=8)
    with pytest.raises(UsageError, match=message):
        views_for(DataSettings(**data), ObjectiveSettings(**objective), config)


def test_masks_that_do_not_fit_the_attention() -> None:
    independent = ObjectiveSettings(frame_masks="independent")
    for name in NAMES:
        settings = settings_of(name)
        if settings.temporal.pairs_tokens:
            with pytest.raises(UsageError, match=f"{name} attends to the same patch in all frames"):
                model_config(settings, independent)
        else:
            assert model_config(settings, independent).frames == FRAMES
    assert DividedOptions.pairs_tokens and not TrajectoryOptions.pairs_tokens
    with pytest.raises(UsageError, match="model: frames 0 is not from 1 to 1024"):
        ModelSettings(frames=0)
    none = ["--model.temporal", "orthoformer", "--model.temporal.prototypes", "0", "--out", "x"]
    with pytest.raises(UsageError, match="temporal: orthoformer: prototypes 0 is not"):
        main(none)


def test_a_run_its_resumption_and_the_tools(tmp_path: Path, data_set: Manifest) -> None:
    """Orthoformer draws its first prototypes with the generator that resumes with a run."""
    common = {"frames": 2, "workers": 0}
    changes: dict[str, Any] = {
        "data": common,
        "model": {
            "temporal": {"name": "orthoformer", "prototypes": 3}, "frames": 2, "depth": 1,
            "width": 24, "heads": 2, "decoder_width": 16, "decoder_heads": 2,
        },
        "objective": {"aligned_weight": 0.0},
    }  # fmt: skip

    run = tmp_path / "run"
    loop = {"steps": 4, "save_every": 2, "evaluate_every": 4}
    command = words(tmp_path, run, data_set.folder, loop=loop, **changes)
    assert main(command) == 0
    last = run / "checkpoints" / "000000004"
    weights = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*command, "--resume", "auto"]) == 0
    assert (last / "model.safetensors").read_bytes() == weights
    assert {"video", "video_patch_mean"} <= trace(run)[-1].keys()
    checkpoint = str(last)
    image, table = str(tmp_path / "a.png"), str(tmp_path / "a.json")
    assert run_command(inpaint_main, [checkpoint, data_set.folder, "--out", image]) == 0
    with Image.open(image) as picture:
        assert picture.width > 1000
    assert run_command(retrieve_main, [checkpoint, data_set.folder, "--json", table]) == 0
