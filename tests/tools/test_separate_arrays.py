"""Separation of arrays in memory: the same voices and masks as of a file, and progress."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from threadpoolctl import threadpool_info, threadpool_limits

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.media import probe
from cavmae.datasets.media.geometry import cut_from
from cavmae.datasets.media.playback import Playback
from cavmae.finetune.inference import SeparateSettings, Separator, Target
from cavmae.tools.separate import main

Maker = Callable[..., Path]
VOICES_ONLY = SeparateSettings(second_look=False, masks=False, overlay=False)


def decoded(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Frames of the displayed size, and the audio as it is stored."""
    info = probe(str(path))
    with Playback(info, cut_from(info, info.display, info.display)) as playback:
        frames = np.stack(playback.read_frames(0, playback.frames))
    with av.open(str(path)) as container:
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
        channels = container.streams.audio[0].channels
    samples = np.concatenate(parts, axis=1).reshape(-1, channels)
    waveform = samples.astype(np.float64) / 32768
    return frames, waveform[:, 0] if channels == 1 else waveform, info.audio_rate


def masks_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="gray") > 127 for f in container.decode(video=0)])


@pytest.mark.parametrize(
    ("audio", "settings", "target"),
    [
        ({}, SeparateSettings(overlay=False), Target()),
        (
            {"rate": 44_100, "channels": 2},
            SeparateSettings(overlay=False, rate="input", min_seconds=0),
            Target(box=(0.1, 0.2, 0.5, 0.9), time=1.0),
        ),
    ],
)
def test_arrays_give_what_the_file_of_them_gives(
    separator: Separator, video: Maker, tmp_path: Path, audio: dict[str, int],
    settings: SeparateSettings, target: Target,
) -> None:  # fmt: skip
    path = video("a.mkv", seconds=2.0, events=(0.5,), audio="pcm_s16le", size=(144, 96), **audio)
    files = separator.separate(path, tmp_path / "out", settings, target)
    frames, waveform, rate = decoded(path)
    arrays = separator.separate_arrays(frames, waveform, rate, 25.0, settings, target)
    assert arrays.ids == tuple(person.number for person in files.people)
    assert len(arrays.ids) >= 1
    assert arrays.sample_rate == files.record["sample_rate"]
    assert arrays.voices.shape == (len(arrays.ids), round(2.0 * arrays.sample_rate))
    assert arrays.masks is not None and arrays.masks.shape == (len(arrays.ids), 50, 96, 144)
    assert arrays.activity_prob.shape == (len(arrays.ids), 50)
    pairs = [*zip(arrays.voices, (p.voice for p in files.people), strict=True)]
    for voice, file in [*pairs, (arrays.residual, files.residual)]:
        written, _ = soundfile.read(str(file), dtype="float32")
        assert np.abs(written - voice * files.record["gain"]).max() <= 1.1 / 32768
    for masks, person in zip(arrays.masks, files.people, strict=True):
        assert person.mask is not None
        assert masks.any()
        assert (masks_of(person.mask) == masks).mean() > 0.99
    for record, person in zip(arrays.records, files.people, strict=True):
        written_record = json.loads(json.dumps(record))
        assert written_record == {name: person.record[name] for name in record}
        assert record["speech"]


def test_frames_and_audio_at_any_rate(separator: Separator) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, size=(9, 40, 60, 3), dtype=np.uint8)
    waveform = rng.normal(size=(11_025, 3)).astype(np.float32) * 0.1
    waveform[:, :2] = np.sin(np.arange(11_025) * 0.3)[:, None] * (0.2, 0.1)
    settings = SeparateSettings(second_look=False, rate="input", min_seconds=0)
    arrays = separator.separate_arrays(frames, waveform, 11_025, 10.0, settings)
    assert arrays.voices.shape[1] == len(arrays.residual) == 11_025
    assert arrays.masks is not None and arrays.masks.shape[1:] == (9, 40, 60)
    assert arrays.activity_prob.shape[1] == arrays.activity_rate == 25  # a second
    mixture = waveform @ np.array([0.5, 0.5, 0.0], dtype=np.float32)  # 2.1, without effects
    total = arrays.voices.sum(0) + arrays.residual
    inside = slice(200, -200)
    assert np.abs(total - mixture)[inside].max() < 0.01 * np.abs(mixture).max()
    assert separator.separate_arrays(frames, waveform, 11_025, 10.0, VOICES_ONLY).masks is None


def test_an_inverted_channel_does_not_cancel_the_other(separator: Separator) -> None:
    wave = np.random.default_rng(0).normal(size=16_000).astype(np.float32) * 0.1
    frames = np.full((25, 32, 48, 3), 90, dtype=np.uint8)
    arrays = separator.separate_arrays(
        frames, np.stack([wave, -wave], axis=1), 16_000, settings=VOICES_ONLY
    )
    total = arrays.voices.sum(0) + arrays.residual
    np.testing.assert_allclose(total, wave, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.zeros((4, 32, 48, 3), np.float32)}, "frames is float32"),
        ({"frames": np.zeros((4, 3, 32, 48), np.uint8)}, r"give uint8 \[T, H, W, 3\]"),
        ({"frames": np.zeros((0, 32, 48, 3), np.uint8)}, r"frames is uint8 \[0, "),
        ({"waveform": np.zeros(9, np.int16)}, "waveform is int16"),
        ({"waveform": np.array([0.0, np.nan])}, "waveform has NaN"),
        ({"sample_rate": 0}, "sample_rate 0"),
        ({"frame_rate": 0.0}, "frame_rate 0"),
    ],
)
def test_arrays_that_cannot_be(
    separator: Separator, changes: dict[str, np.ndarray], message: str
) -> None:
    whole = {
        "frames": np.zeros((4, 32, 48, 3), np.uint8), "waveform": np.zeros(2_560),
        "sample_rate": 16_000, "frame_rate": 25.0,
    }  # fmt: skip
    with pytest.raises(UsageError, match=message):
        separator.separate_arrays(**(whole | changes))  # type: ignore[arg-type]


def test_samples_that_overflow_are_named(separator: Separator) -> None:
    frames = np.zeros((4, 32, 48, 3), np.uint8)
    with pytest.raises(CavmaeError, match=r"^frames and waveform: .*samples as large as 1.0e\+07"):
        separator.separate_arrays(frames, np.full(2_560, 1e7), 16_000)


# --- progress ---


def test_progress_rises_to_1(separator: Separator, video: Maker, tmp_path: Path) -> None:
    path = video(seconds=1.5, size=(96, 64))
    frames, waveform, rate = np.zeros((38, 64, 96, 3), np.uint8), np.zeros(24_000), 16_000
    for settings in (SeparateSettings(second_look=False, height=64), VOICES_ONLY):
        fractions: dict[str, list[float]] = {"file": [], "arrays": []}
        out = tmp_path / f"masks-{settings.masks}"
        separator.separate(path, out, settings, progress=fractions["file"].append)
        separator.separate_arrays(
            frames, waveform, rate, settings=settings, progress=fractions["arrays"].append
        )
        for values in fractions.values():
            assert len(set(values)) >= 4
            assert values[0] == 0
            assert values[-1] == 1
            assert all(a <= b for a, b in itertools.pairwise(values))


def test_matrix_products_of_numpy_do_not_compete_with_encoders(
    separator: Separator, video: Maker, tmp_path: Path
) -> None:
    threads: list[int] = []

    def record(fraction: float) -> None:
        if fraction < 1:
            blas = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
            threads.extend(lib["num_threads"] for lib in blas)

    path = video(seconds=1.5, size=(96, 64))
    with threadpool_limits(2, user_api="blas"):
        separator.separate(path, tmp_path / "out", progress=record)
    assert set(threads) == {1}


def test_the_command_shows_progress(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("cavmae.common.progress.LINE_EVERY", 0.0)
    caplog.set_level("INFO", "cavmae")
    options = ["--second-look", "false", "--overlay", "false", "--masks", "false"]
    words = [str(video(seconds=1.0)), "--model", checkpoint, "--out", str(tmp_path), *options]
    assert main(words) == 0
    assert "100 % done, 0.0 min left" in caplog.text
