"""Blocks of a pretrained audio branch inside a separator: taken over, shared, unfrozen."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.finetune.separation.model import SoundSeparator
from cavmae.finetune.separation.run import build_sound_separator
from cavmae.finetune.separation.settings import SoundModelSettings
from cavmae.finetune.separators.frozen_transformer import FrozenTransformer
from cavmae.finetune.separators.settings import FrozenTransformerOptions
from cavmae.finetune.speaker.factory import build_speaker
from cavmae.finetune.speaker.settings import (
    EncoderSettings,
    SpeakerModelSettings,
    SpeakerSoundSettings,
)
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.model import CAVMAE

CONFIG = CAVMAEConfig(
    size="custom", image_height=16, image_width=16, mel_bins=16, audio_frames=32, width=16, heads=2,
    depth=4, mlp_ratio=2.0, decoder_width=8, decoder_heads=1, decoder_depth=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, CAVMAE]:
    """Folder of a pretrained model, and the model."""
    torch.manual_seed(0)
    model = CAVMAE(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("encoder")
    model.save_pretrained(folder)
    return str(folder), model


def options(name: str = "", **changes: Any) -> FrozenTransformerOptions:
    shape = {"width": 16, "heads": 2, "layers": 4, "mlp_ratio": 2.0, "unfreeze_layers": 1}
    return FrozenTransformerOptions(encoder=name, **(shape | changes))


@pytest.mark.parametrize("channels", [1, 3])
def test_each_channel_equals_the_source(encoder: tuple[str, CAVMAE], channels: int) -> None:
    name, model = encoder
    separator = FrozenTransformer(options(name, channels=channels), 8)
    separator.load_pretrained()
    x = torch.randn(2, channels, 9, 16)
    source = x.flatten(0, 1)
    for block in model.blocks_a:
        source = block(source)
    assert torch.equal(separator.forward_blocks(x).flatten(0, 1), source)


def test_new_models_get_the_weights_and_saved_ones_need_no_checkpoint(
    encoder: tuple[str, CAVMAE], tmp_path: Path
) -> None:
    name, model = encoder
    checkpoint = tmp_path / "encoder"
    shutil.copytree(name, checkpoint)
    chosen = options(str(checkpoint))
    sound = build_sound_separator(SoundModelSettings(chosen, width=8, cue_layers=0))
    speaker_settings = SpeakerModelSettings(
        encoder=EncoderSettings("custom", width=16, heads=2, depth=1),
        sound=SpeakerSoundSettings(chosen, width=8, cue_layers=0), width=16, heads=2,
        train_encoder="all",
    )  # fmt: skip
    speaker = build_speaker(speaker_settings, (32, 32), 64, seed=0)
    sound.save_pretrained(tmp_path / "sound")
    shutil.rmtree(checkpoint)
    saved = SoundSeparator.from_pretrained(tmp_path / "sound")
    for built in (sound, speaker.sound, saved):
        blocks = built.separator.blocks.state_dict()
        for key, value in model.blocks_a.state_dict().items():
            assert torch.equal(blocks[key], value), key


def test_a_checkpoint_of_another_shape_is_refused(
    encoder: tuple[str, CAVMAE], tmp_path: Path
) -> None:
    name, _ = encoder
    for changes in ({"heads": 4}, {"width": 32}, {"layers": 5}, {"mlp_ratio": 4.0}):
        with pytest.raises(UsageError, match="has 4 blocks of width 16 with 2 heads and mlp_ratio"):
            FrozenTransformer(options(name, **changes), 8).load_pretrained()
    with pytest.raises(CavmaeError, match="is no folder of weights"):
        FrozenTransformer(options(str(tmp_path / "none")), 8).load_pretrained()


def test_blocks_learn_from_the_outermost_inwards() -> None:
    separator = FrozenTransformer(options(layers=7, unfreeze_layers=2, unfreeze_from=0.4), 8)
    names = [f"blocks.{number}.mlp.fc1.weight" for number in range(7)]
    parameters = dict(separator.named_parameters())
    learns = [parameters[name].requires_grad for name in names]
    assert learns == [True, True, False, False, False, True, True]
    starts = [separator.lr_start(name) for name in names]
    assert [starts[number] for number in (0, 1, 5, 6)] == pytest.approx([0.4, 0.7, 0.7, 0.4])
    assert {separator.lr_scale(name) for name in names} == {0.035}
    for name in parameters.keys() - {n for n in parameters if n.startswith("blocks.")}:
        assert (separator.lr_start(name), separator.lr_scale(name)) == (0, 1)
    frozen = FrozenTransformer(options(unfreeze_layers=0), 8)
    assert not any(parameter.requires_grad for parameter in frozen.blocks.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "width 16 is no multiple of 3 heads"),
        ({"mlp_ratio": 0.0}, "mlp_ratio 0.0 is not from"),
        ({"unfreeze_from": 1.0}, r"unfreeze_from 1.0 is not in \[0, 1\)"),
        ({"unfreeze_lr_scale": 0.0}, r"unfreeze_lr_scale 0.0 is not in \(0, 1\]"),
    ],
)
def test_options_that_make_no_network(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(**changes)
