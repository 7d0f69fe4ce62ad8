"""Temporal attentions: laws of every entry of the registry, and of a toy entry of a test."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cavmae.datasets.stream.transforms import DeviceTransform, Statistics
from cavmae.pretrain.blocks import Attention, Modality
from cavmae.pretrain.cavmae_task import CAVMAETask
from cavmae.pretrain.config import CAVMAEConfig, EncoderConfig, as_base_config
from cavmae.pretrain.encoder import Encoder
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.settings import ObjectiveSettings
from cavmae.pretrain.temporal.base import TemporalAttention, temporal_parameters
from cavmae.pretrain.temporal.settings import TEMPORAL, TemporalOptions
from cavmae.pretrain.weights import initialise_from_mae, load_weights

CONFIG = CAVMAEConfig(
    image_height=32, image_width=48, audio_frames=96, width=24, heads=2, depth=1,
    decoder_width=16, decoder_heads=2, decoder_depth=1, contrast_width=8,
)  # fmt: skip


class MeanOverFrames(TemporalAttention):
    """Per-frame attention, and a share of the mean over frames added to it."""

    def __init__(self, options: Any, width: int, heads: int):
        super().__init__(options, width, heads)
        self.mean_proj = nn.Linear(width, width, bias=False)
        nn.init.constant_(self.mean_proj.weight, options.share)

    def mix_frames(self, x: Tensor, frames: int) -> Tensor:
        x_nfkd = x.unflatten(1, (frames, -1))
        own = Attention.forward(self, x_nfkd.flatten(0, 1)).unflatten(0, x_nfkd.shape[:2])
        return (own + self.mean_proj(x_nfkd.mean(1, keepdim=True))).flatten(1, 2)


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[type[TemporalOptions]]:
    """Entry of the registry, as a new file and its row would add it."""

    @TEMPORAL.register("toy", MeanOverFrames)
    @dataclasses.dataclass(frozen=True)
    class ToyOptions(TemporalOptions):
        """Options of the toy.

        Args:
            share: of the mean over frames.
        """

        share: float = 0.25

    yield ToyOptions
    del TEMPORAL._entries["toy"]


NAMES = [*TEMPORAL, "toy"]


def encoder_of(name: str, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    config = dataclasses.replace(
        as_base_config(CONFIG, EncoderConfig), temporal=TEMPORAL.options(name)()
    )
    encoder = Encoder(config)
    encoder.initialise()
    return encoder


def frames_of(clips: int = 2, count: int = 3) -> Tensor:
    return torch.randn(clips, count, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_per_frame_attention_sees_each_frame_by_itself() -> None:
    encoder = encoder_of("per-frame")
    frames = frames_of()
    keep = torch.tensor([[0, 3, 4], [1, 2, 5]])
    alone = torch.stack([encoder.image_features(frame) for frame in frames.unbind(1)], dim=1)
    torch.testing.assert_close(encoder.frame_features(frames), alone)
    alone = torch.cat([encoder.frame_features(f[:, None], keep) for f in frames.unbind(1)], dim=1)
    torch.testing.assert_close(encoder.frame_features(frames, keep), alone)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_weights_of_per_frame_attention_start_every_other(name: str) -> None:
    """With a single frame both then are equal to the bit."""
    per_frame, encoder = encoder_of("per-frame", seed=1), encoder_of(name)
    own = {key: value.clone() for key, value in temporal_parameters(encoder).items()}
    assert load_weights(encoder, per_frame.state_dict()) == []
    frames = frames_of(count=1)
    assert torch.equal(encoder.frame_features(frames), per_frame.frame_features(frames))
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in own.items())
    if own:
        with pytest.raises(Exception, match="is left over"):
            load_weights(per_frame, encoder.state_dict())
        damaged = encoder.state_dict()
        del damaged[next(iter(own))]
        with pytest.raises(Exception, match="is missing"):
            load_weights(encoder_of(name, seed=2), damaged)


def test_initialisation_leaves_what_only_serves_several_frames() -> None:
    encoder = encoder_of("toy")
    parameters = temporal_parameters(encoder)
    assert list(parameters) == [
        "blocks_v.0.attn.mean_proj.weight", "blocks_u.0.attn.mean_proj.weight"
    ]  # fmt: skip
    vit = {
        key.replace("blocks_v.0", "blocks.0").replace("blocks_u.0", "blocks.1"): value
        for key, value in encoder_of("per-frame", seed=1).state_dict().items()
        if "norm1_" not in key and "norm2_" not in key
    }
    vit |= {f"patch_embed.proj.{kind}": vit[f"patch_embed_v.proj.{kind}"]
            for kind in ("weight", "bias")}  # fmt: skip
    initialise_from_mae(encoder, vit)
    assert all(torch.all(parameter == 0.25) for parameter in parameters.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("passes", [(None,), ("a",), ("v",), ("a", "v"), (None, "a", "v")])
def test_parameters_without_gradient(name: str, count: int, passes: tuple[Modality, ...]) -> None:
    """They are those that PyTorch gives no gradient to when these passes are run."""
    encoder = encoder_of(name)
    audio = encoder.patchify_audio(torch.randn(2, 96, 128))
    video = encoder.patchify_image(frames_of(2, count).flatten(0, 1))
    total = torch.zeros(())
    for modality in passes:
        tokens = []
        if modality != "v":
            tokens.append(encoder.forward_branch(audio, "a"))
        if modality != "a":
            tokens.append(encoder.forward_branch(video, "v", frames=count))
        together = torch.cat(tokens, dim=1)
        joint = encoder.forward_joint(together, modality, count if modality == "v" else 1)
        total = total + joint.square().sum()
    total.backward()
    without = {id(p) for p in encoder.parameters_without_gradient(passes, count)}
    for key, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert (parameter.grad is None) == (id(parameter) in without), key


@pytest.mark.parametrize("joint", [1, 3])
def test_layers_are_counted_as_timm_does(joint: int) -> None:
    config = dataclasses.replace(CONFIG, depth=4, joint_depth=joint)
    encoder, model = Encoder(as_base_config(config, EncoderConfig)), CAVMAE(config)
    layers = encoder.layer_groups()
    assert set(layers) == {name for name, _ in encoder.named_parameters()}
    for name, layer in layers.items():
        part, *rest = name.split(".")
        if part.startswith("blocks_"):
            assert layer == int(rest[0]) + 1 + (4 if part == "blocks_u" else 0), name
        else:
            assert layer == (4 + joint + 1 if part.startswith("norm") else 0), name
    last = model.layer_groups()
    assert {name: last[name] for name in layers} == layers
    assert {last[name] for name in last.keys() - layers.keys()} == {4 + joint + 2}


def test_a_new_entry_is_built_trained_saved_and_loaded(
    tmp_path: Path, toy: type[TemporalOptions]
) -> None:
    """Nothing but the entry itself knows of it."""
    torch.manual_seed(0)
    model = CAVMAE(dataclasses.replace(CONFIG, temporal=toy(share=0.5)))  # type: ignore[call-arg]
    objective = ObjectiveSettings(mae_weight=0, contrastive_weight=0, aligned_weight=1)
    task = CAVMAETask(model, objective, DeviceTransform(Statistics()), frames=2)
    batch: dict[str, Any] = {
        "fbank": torch.randn(3, 96, 128).half() * 4 - 5,
        "fbank_length": torch.full((3,), 96),
        "frames": torch.randint(256, (3, 2, 32, 48, 3)).byte(),
        "frame_times": torch.rand(3, 2) * 0.96,
    }
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    assert {id(p) for p in temporal_parameters(model).values()} <= {id(p) for p in trained}
    task("training_step", batch, 0.6).loss.backward()
    torch.optim.SGD(trained, 0.1).step()
    assert all(torch.any(p != 0.5) for p in temporal_parameters(model).values())
    model.save_pretrained(tmp_path)
    assert '"name": "toy"' in json.dumps(json.loads((tmp_path / "config.json").read_bytes()))
    loaded = CAVMAE.from_pretrained(tmp_path)
    assert loaded.config == model.config
    frames = frames_of()
    with torch.no_grad():
        assert torch.equal(loaded.frame_features(frames), model.frame_features(frames))
        moved = frames.clone()
        moved[:, 1] += 1  # another frame now counts
        first = loaded.frame_features(frames)[:, 0]
        assert not torch.allclose(loaded.frame_features(moved)[:, 0], first)
