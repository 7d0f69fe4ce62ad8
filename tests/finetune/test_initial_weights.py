"""Log line of settings that the weights of ``model.init_from`` replace."""

import dataclasses
import logging

import pytest

from cavmae.finetune.models.box import model_source
from cavmae.finetune.separation.run import build_sound_separator
from cavmae.finetune.separation.settings import SoundModelSettings
from cavmae.finetune.speaker.factory import build_speaker, load_speaker
from cavmae.finetune.speaker.settings import SpeakerModelSettings
from cavmae.pretrain.temporal.settings import JointOptions

BOX = "talkers-small"


def test_other_settings_than_those_of_the_weights_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cavmae")
    own = load_speaker(model_source(BOX))[0].config
    plain = SpeakerModelSettings(init_from=BOX)
    encoder = dataclasses.replace(plain.encoder, temporal=JointOptions())
    for changes, names in [
        ({}, None),
        ({"slots": own.slots, "width": own.width}, None),
        ({"slots": own.slots + 1, "encoder": encoder}, "model.encoder, model.slots"),
    ]:
        caplog.clear()
        build_speaker(dataclasses.replace(plain, **changes), own.encoder.image_size, 256, 0)
        expected = [f"The model is that of model.init_from: its own values count for {names}."]
        assert caplog.messages == (expected if names else [])
    build_sound_separator(SoundModelSettings(init_from=BOX, queries=7))
    assert "its own values count for model.queries." in caplog.messages[-1]
