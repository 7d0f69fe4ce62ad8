"""The event classifier gives the reference's logits with the reference's weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from cavmae.common.cli import run
from cavmae.finetune.events.config import EventConfig, Mode
from cavmae.finetune.events.model import EventClassifier
from cavmae.finetune.inference.event_model import load_task
from cavmae.pretrain.config import EncoderConfig
from cavmae.tools import convert

GOLDEN = Path(__file__).parents[2] / "golden" / "cav_mae_tiny.safetensors"
# The authors' names say what is there, or that all but this is missing.
AUTHORS: dict[Mode, str] = {
    "multimodal": "multimodal",
    "audio_only": "audioonly",
    "video_only": "videoonly",
    "missing_video": "missingaudioonly",
    "missing_audio": "missingvideoonly",
}
TINY = EncoderConfig(image_height=32, image_width=32, audio_frames=64, width=32, heads=2, depth=1)


def golden(name: str) -> Any:
    with safe_open(str(GOLDEN), "pt") as file:
        return file.get_tensor(name)


@pytest.mark.parametrize("mode", AUTHORS)
def test_logits_of_all_modes(mode: Mode) -> None:
    with safe_open(str(GOLDEN), "pt") as file:
        shape = json.loads(file.metadata()["config"])
        names = [key for key in file.keys() if key.startswith("ft.")]  # noqa: SIM118
        weights = {name.removeprefix("ft."): file.get_tensor(name) for name in names}
        classes = int(file.metadata()["label_dim"])
    encoder = EncoderConfig(
        image_height=shape["img_size"],
        image_width=shape["img_size"],
        audio_frames=shape["audio_length"],
        width=shape["embed_dim"],
        heads=shape["num_heads"],
        depth=shape["modality_specific_depth"],
    )
    model = EventClassifier(EventConfig(encoder, tuple("abcdefghijklmn"[:classes])))
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        logits = model.eval()(golden("io.audio"), golden("io.image"), mode)
    torch.testing.assert_close(logits, golden(f"io.ft.{AUTHORS[mode]}"), rtol=1e-5, atol=1e-5)


def test_the_command_gives_the_logits_of_a_converted_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with safe_open(str(GOLDEN), "pt") as file:
        names = [key for key in file.keys() if key.startswith("ft.")]  # noqa: SIM118
        weights = {f"module.{k.removeprefix('ft.')}": file.get_tensor(k) for k in names}
    torch.save(weights, tmp_path / "published.pth")
    out = tmp_path / "ours"
    words = [str(tmp_path / "published.pth"), "--out", str(out), "--heads", "3"]
    assert run(convert.main, words) == 0
    task = load_task(str(out)).eval()
    assert task.model.config.classes == tuple(map(str, range(len(task.model.config.classes))))
    # The golden inputs are normalised.
    monkeypatch.setattr(task.transform, "forward", lambda batch: batch)
    batch = {"fbank": golden("io.audio"), "frames": golden("io.image")[:, None]}
    batch["frames"] = batch["frames"].expand(-1, 2, -1, -1, -1)
    for mode, name in AUTHORS.items():
        probs = task.probs(batch, mode)
        assert probs.shape[1] == (1 if mode in ("audio_only", "missing_video") else 2)
        expected = golden(f"io.ft.{name}").sigmoid()
        for own in probs.unbind(1):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


def test_frames_are_independent_and_share_the_audio() -> None:
    torch.manual_seed(0)
    model = EventClassifier(EventConfig(TINY, ("a", "b"), "attention")).eval()
    audio, frames = torch.randn(2, 64, 128), torch.randn(2, 3, 3, 32, 32)
    modes: tuple[Mode, ...] = ("multimodal", "video_only", "missing_audio")
    for mode in modes:
        logits = model.forward_frames(audio, frames, mode)
        assert logits.shape == (2, 3, 2)
        for number in range(3):
            torch.testing.assert_close(logits[:, number], model(audio, frames[:, number], mode))
    with pytest.raises(ValueError, match="needs the audio or the frames"):
        model(audio, None, "video_only")


@pytest.mark.parametrize(
    ("classes", "message"), [((), "0, not from 1"), (("a", "b", "a"), "a name occurs twice")]
)
def test_classes_that_make_no_model(classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EventConfig(TINY, classes)
