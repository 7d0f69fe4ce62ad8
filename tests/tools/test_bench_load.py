"""`cavmae bench load`: the baseline reads the reference's files and gives batches equal to ours."""

from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

from cavmae.datasets.stream import features
from cavmae.datasets.stream.transforms import DeviceTransform, Statistics
from cavmae.tools.benchmarks.loading import loose_files, reference_sample


def test_the_baseline_is_the_references_loader(tmp_path: Path) -> None:
    folder = Path(loose_files(tmp_path, 1))
    with Image.open(folder / "0.jpg") as image:
        assert image.size == (224, 224)  # as its extraction stores frames
        pixels = np.asarray(image)
    samples, rate = soundfile.read(folder / "0.wav", dtype="int16")
    assert (rate, len(samples)) == (16_000, 160_000)
    fbank, frame = reference_sample(folder / "0.wav")
    stored = features.fbank(torch.from_numpy(features.to_float(samples)))
    batch = {
        "key": ["0"],
        "fbank": torch.nn.functional.pad(stored, (0, 0, 0, 1024 - len(stored)))[None].half(),
        "fbank_length": torch.tensor([len(stored)]),
        "frames": torch.from_numpy(pixels.copy())[None, None],
    }
    ours = DeviceTransform(Statistics())(batch)
    assert fbank.shape == (1024, 128)
    torch.testing.assert_close(fbank, ours["fbank"][0].float(), atol=5e-3, rtol=0)
    torch.testing.assert_close(frame, ours["frames"][0, 0].float(), atol=1e-5, rtol=1e-5)
