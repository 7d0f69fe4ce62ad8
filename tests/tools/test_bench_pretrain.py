"""`cavmae bench pretrain`: the mathematics of its baseline is ours, and the command works."""

import json
from pathlib import Path

import pytest
import torch

from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.losses import info_nce
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.temporal.settings import TEMPORAL
from cavmae.tools.bench import main
from cavmae.tools.benchmarks.pretraining import BASELINE, ReferenceWay

SHAPE = CAVMAEConfig(
    image_height=32, image_width=48, audio_frames=96, width=24, heads=2, depth=1, decoder_width=16,
    decoder_heads=2, decoder_depth=1,
)  # fmt: skip


@pytest.mark.parametrize("normalised", [False, True])
def test_the_references_way_is_the_same_mathematics(normalised: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = CAVMAE(SHAPE), ReferenceWay(SHAPE)
    theirs.load_state_dict(ours.state_dict())
    fbank, image = torch.randn(3, 96, 128), torch.randn(3, 3, 32, 48)
    masking = ours.mask(3, 0.75, 0.75)
    for model in (ours, theirs):
        output = model(fbank, image, *masking, norm_pix_loss=normalised)
        contrast = info_nce(output.audio, output.video, 0.05, False)
        (output.audio_loss + output.video_loss + 0.01 * contrast.loss).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "pretrain --size tiny --batch-size 2 --steps 1 --rounds 1 --image 32 --audio-frames 96 "
        f"--sweep [3] --frames 2 --device cpu --out {tmp_path / 'rows.json'}"
    )
    assert main(words.split()) == 0
    printed = capsys.readouterr().out
    assert "times as fast: ours, fp32, decoder of cross-attention" in printed
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows[0]["name"] == BASELINE and rows[4]["name"] == "ours, fp32, batch 3"
    assert [row["name"] for row in rows[5:]] == [f"ours, fp32, 2 frames, {n}" for n in TEMPORAL]
    assert all(row["seconds"] > 0 and "TFLOP/s" in row["note"] for row in rows)
