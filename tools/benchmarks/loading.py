"""`cavmae bench load`: loading of shards and the loader of the CAV-MAE reference, on one core."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from PIL import Image
from torch import Tensor
from torchvision import transforms

from cavmae.common.files import sha256_of, write_atomically
from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import NAME, Manifest, ShardEntry
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.format.shards import END, encode_sample
from cavmae.datasets.stream import features
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.shard_reader import Access
from cavmae.datasets.stream.stream import TrainStream
from cavmae.datasets.stream.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DeviceTransform,
    Statistics,
)
from cavmae.datasets.stream.view import View
from cavmae.tools.benchmarks.media import VideoSpec, draw_frame
from cavmae.tools.benchmarks.settings import LoadBench
from cavmae.tools.benchmarks.table import Row, on_one_core, resident_mb, rounds_of, save, table

BASELINE = "WAV, fbank and JPEG of 224x224 for each sample, as the reference does"
SECONDS = 10.0
BATCH = 48
SAMPLES = 1000  # synthetic ones
MEASURED_SECONDS = 8.0  # of each way in a round
SIDE = 224  # pixels of the frames that the reference's extraction stores
# Scaling and cropping leave frames of that size as they are.
PREPROCESSING = transforms.Compose(
    [
        transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(SIDE),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
)


def make_shards(folder: Path, samples: int, shards: int = 8) -> Manifest:
    """Write synthetic shards of the events profile: textured frames, and noise as audio."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    entries = []
    for number in range(shards):
        path = folder / f"clips-{number:06d}.tar"
        count = samples * (number + 1) // shards - samples * number // shards
        with write_atomically(path) as file:
            for index in range(count):
                key = f"made-{number:06d}-{index:06d}"
                file.write(encode_sample(key, make_members(rng, index)))
            file.write(END)
        entries.append(ShardEntry(path.name, count, path.stat().st_size, sha256_of(path)))
    manifest = Manifest(str(folder), tuple(entries), {}, inputs=samples)
    with write_atomically(folder / NAME) as file:
        file.write(manifest.to_bytes())
    return manifest


def make_members(rng: np.random.Generator, number: int) -> dict[str, bytes]:
    """Members of a synthetic sample: 10 s with 10 frames of 224x224."""
    samples = (rng.normal(0, 0.05, int(SECONDS * features.SAMPLE_RATE)) * 32767).astype(np.int16)
    fbank = features.fbank(torch.from_numpy(features.to_float(samples))).numpy()
    spec = VideoSpec(size=(SIDE, SIDE), clutter=True, seed=number)
    members = {
        sample.frame_member(i): sample.encode_frame(draw_frame(25 * i, spec, False), 90)
        for i in range(10)
    }
    members["fbank.npy"] = sample.encode_fbank(fbank)
    members["flac"] = sample.encode_waveform(samples)
    members["json"] = SampleInfo(
        source="made", start=0.0, duration=SECONDS, labels=("noise",), speaker=None,
        frame_times=tuple(float(i) for i in range(10)), frame_size=(SIDE, SIDE),
        fbank_frames=len(fbank),
    ).to_bytes()  # fmt: skip
    return members


def ours(
    folder: str, seconds: float, window: float | None = None, normalised: bool = False
) -> float:
    """Seconds per sample of our stream in this process.

    Args:
        folder: of the shards.
        seconds: time of the measurement.
        window: seconds of aligned windows with 8 frames; None: whole clips with one frame.
        normalised: include normalisation, which is otherwise done on the training device.
    """
    torch.set_num_threads(1)
    view = View() if window is None else View(window=window, frames=8)
    stream = TrainStream(Manifest.load(folder), view, BATCH, access=Access(verify="size"))
    transform = DeviceTransform(Statistics())
    batches = iter(Loader(stream))
    next(batches)  # fills the shuffle buffer
    count = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        batch = next(batches)
        if normalised:
            batch = transform(batch)
        count += len(batch["key"])
    return elapsed / count


def reference(folder: str, seconds: float) -> float:
    """Seconds per sample of the reference's loader."""
    torch.set_num_threads(1)
    wavs = sorted(Path(folder).glob("*.wav"))
    count = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        reference_sample(wavs[count % len(wavs)])
        count += 1
    return elapsed / count


def reference_sample(wav: Path) -> tuple[Tensor, Tensor]:
    """Sample of the reference's loader, from a WAV file and the JPEG file of the same name.

    Noise and roll, which the reference adds in training, are left out: ours run on the training
    device.

    Returns:
        the fbank [1024, 128] and the frame [3, 224, 224], both normalised.
    """
    waveform, rate = soundfile.read(wav, dtype="float32")
    audio = torch.from_numpy(waveform)
    audio = audio - audio.mean()
    fbank = torchaudio.compliance.kaldi.fbank(
        audio[None], htk_compat=True, sample_frequency=rate, use_energy=False,
        window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip
    fbank = torch.nn.functional.pad(fbank, (0, 0, 0, 1024 - len(fbank)))
    fbank = (fbank - features.AUDIOSET_MEAN) / features.AUDIOSET_STD
    with Image.open(wav.with_suffix(".jpg")) as image:
        frame: Tensor = PREPROCESSING(image)
    return fbank, frame


def memory_over(folder: str, samples: int) -> float:
    """Growth of a process in 10^6 bytes, from the first tenth of the samples to the last."""
    torch.set_num_threads(1)
    stream = TrainStream(Manifest.load(folder), View(), BATCH, access=Access(verify="size"))
    early, count = 0.0, 0
    for batch in Loader(stream):
        before, count = count, count + len(batch["key"])
        if before < samples // 10 <= count:
            early = resident_mb()
        if count >= samples:
            break
    return resident_mb() - early


def loose_files(folder: Path, number: int) -> str:
    """Write WAV and JPEG files as the reference's scripts do: frames of 224x224, quality 75."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(number):
        samples = (rng.normal(0, 0.05, int(SECONDS * 16000)) * 32767).astype(np.int16)
        soundfile.write(folder / f"{i}.wav", samples, 16000)
        spec = VideoSpec(size=(SIDE, SIDE), clutter=True, seed=i)
        Image.fromarray(draw_frame(i, spec, False)).save(folder / f"{i}.jpg", quality=75)
    return str(folder)


def run(bench: LoadBench) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = bench.data_set
        if folder is None:
            folder = make_shards(work / "shards", SAMPLES).folder
        loose = loose_files(work / "loose-224", 64)
        results = rounds_of(
            {
                BASELINE: (reference, (loose, MEASURED_SECONDS)),
                "cavmae stream, clip of 10 s and one frame": (ours, (folder, MEASURED_SECONDS)),
                "the same, normalised on that core too": (
                    ours,
                    (folder, MEASURED_SECONDS, None, True),
                ),
                "cavmae stream, window of 2.56 s and 8 frames": (
                    ours,
                    (folder, MEASURED_SECONDS, 2.56),
                ),
            },
            bench.rounds,
        )
        rows = []
        for name, runs in results.items():
            times = [seconds for seconds, _ in runs]
            peak = max(mb for _, mb in runs)
            rows.append(
                Row(name, statistics.median(times), peak, f"least {min(times) * 1e3:.3g} ms")
            )
        print(table("cavmae bench load: one process on one core", "sample", BASELINE, rows))
        if bench.memory_samples:
            growth, peak = on_one_core(memory_over, folder, bench.memory_samples)
            print(
                f"\nMemory over {bench.memory_samples} samples in one process: {growth:+.1f} MB "
                f"from sample {bench.memory_samples // 10} to the last, peak {peak:.0f} MB"
            )
        save(rows, bench.out)
