"""The event classifier gives the reference's logits with the reference's weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cavmae.finetune.events.config import EventConfig
from cavmae.finetune.events.model import EventClassifier, Mode
from cavmae.pretrain.config import EncoderConfig

GOLDEN = Path(__file__).parents[2] / "golden" / "cav_mae_tiny.safetensors"


@pytest.mark.parametrize(
    "mode", ["multimodal", "audioonly", "videoonly", "missingaudioonly", "missingvideoonly"]
)
def test_logits_of_all_modes(mode: Mode) -> None:
    with safe_open(str(GOLDEN), "pt") as file:
        shape = json.loads(file.metadata()["config"])
        names = [key for key in file.keys() if key.startswith("ft.")]  # noqa: SIM118
        weights = {name.removeprefix("ft."): file.get_tensor(name) for name in names}
        audio, image = file.get_tensor("io.audio"), file.get_tensor("io.image")
        wanted = file.get_tensor(f"io.ft.{mode}")
        classes = int(file.metadata()["label_dim"])
    encoder = EncoderConfig(
        image_height=shape["img_size"],
        image_width=shape["img_size"],
        audio_frames=shape["audio_length"],
        width=shape["embed_dim"],
        heads=shape["num_heads"],
        depth=shape["modality_specific_depth"],
    )
    model = EventClassifier(EventConfig(encoder, classes))
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        logits = model.eval()(audio, image, mode)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
