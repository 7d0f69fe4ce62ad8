"""`cavmae bench parity` detects differences, and none between equal steps."""

from collections.abc import Iterator

import pytest
import torch

from cavmae.common.errors import CavmaeError
from cavmae.datasets.stream.transforms import DeviceTransform, Statistics
from cavmae.pretrain.cavmae_task import CAVMAETask
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.engine.task import Task
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.settings import ObjectiveSettings
from cavmae.tools.bench import main
from cavmae.tools.benchmarks import parity
from cavmae.tools.benchmarks.pretraining import synthetic_clips
from tests.finetune.speaker import scenes

CPU = torch.device("cpu")
SHAPE = CAVMAEConfig(
    image_height=32, image_width=32, audio_frames=96, width=24, heads=2, depth=1, decoder_width=16,
    decoder_heads=2, decoder_depth=1,
)  # fmt: skip


def pretraining(rate: float = 0.0) -> Task:
    torch.manual_seed(0)
    model = CAVMAE(SHAPE)
    with torch.no_grad():
        model.decoder_pred_a.weight *= 1 + rate
    return CAVMAETask(model, ObjectiveSettings(), DeviceTransform(Statistics()))


@pytest.mark.parametrize("kind", ["pretraining", "speakers"])
def test_the_same_step_is_the_same_and_half_precision_is_near(kind: str) -> None:
    torch.manual_seed(1)
    batch = synthetic_clips(3, 96, 32) if kind == "pretraining" else scenes.batch()
    build = pretraining if kind == "pretraining" else scenes.task
    reference = parity.training_step(build(), batch, CPU, "fp32")
    torch.rand(5)  # the state of the generator does not matter
    same = parity.compare("same", parity.training_step(build(), batch, CPU, "fp32"), reference)
    assert (same.loss, same.error) == (0.0, 0.0)
    half = parity.compare("half", parity.training_step(build(), batch, CPU, "bf16"), reference)
    assert 1e-5 < half.error < 0.1


def test_differences_are_detected_and_named() -> None:
    batch = synthetic_clips(3, 96, 32)
    reference = parity.training_step(pretraining(), batch, CPU, "fp32")
    other = parity.compare(
        "other", parity.training_step(pretraining(rate=0.5), batch, CPU, "fp32"), reference
    )
    assert other.loss > 1e-3 and other.error > 1e-2
    name = other.worst.split()[1]
    assert "decoder" in name  # gradients before the decoder hardly change
    wrong = reference._replace(loss=float("nan"))
    assert not parity.compare("nan", wrong, reference).loss < 1
    with pytest.raises(CavmaeError, match="other parameters"):
        parity.compare("less", reference._replace(gradients={}), reference)


def test_a_way_that_fails_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def features(device: torch.device) -> Iterator[parity.Compared]:
        yield parity.Compared("filter banks", None, 0.0)

    monkeypatch.setattr(parity, "features", features)
    monkeypatch.setattr(
        parity, "pretraining", lambda bench: (pretraining, synthetic_clips(2, 96, 32))
    )
    monkeypatch.setattr(parity, "finetuning", lambda bench: (scenes.task, scenes.batch()))
    original = parity.training_step

    def step(task: Task, batch: dict, device: torch.device, precision: str) -> parity.ParityStep:
        if precision == "bf16" and isinstance(task, CAVMAETask):
            raise RuntimeError("no such kernel")
        return original(task, batch, device, precision)

    monkeypatch.setattr(parity, "training_step", step)
    with pytest.raises(CavmaeError, match="failed"):
        main(["parity", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "failed: RuntimeError: no such kernel" in printed
    assert "speakers, small: bf16" in printed
