"""Arrays as the source of a recording: frames on screen, audio of windows."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from cavmae.datasets.media import probe
from cavmae.datasets.media.geometry import cut_from
from cavmae.datasets.media.playback import Playback
from cavmae.finetune.inference.sources import ArraySource, working_size


@pytest.mark.parametrize("fps", [12.5, 25, 30, 60])
def test_frames_are_those_of_a_player(video: Callable[..., Path], fps: float) -> None:
    """And audio that goes on longer than the video."""
    path = video("a.mkv", seconds=1.0, audio_seconds=1.4, fps=fps, size=(96, 64), audio="pcm_s16le")
    info = probe(str(path))
    with av.open(str(path)) as container:
        video_frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    with Playback(info, cut_from(info, (64, 96), (64, 96))) as playback:
        whole = playback.read_audio(0, playback.frames)[: playback.num_samples]
    source = ArraySource(video_frames, whole, 16_000, fps, (64, 96))
    with Playback(info, cut_from(info, (64, 96), (64, 96))) as playback:
        assert (source.frames, source.num_samples) == (playback.frames, playback.num_samples)
        assert source.seconds == pytest.approx(playback.seconds)
        assert source.mixdown == ("mono",)
        for start in (0, 8, 16, 30):
            np.testing.assert_allclose(
                np.stack(source.read_frames(start, 16)).astype(int),
                np.stack(playback.read_frames(start, 16)),
                atol=6,
            )
            np.testing.assert_array_equal(
                source.read_audio(start, 16), playback.read_audio(start, 16)
            )


def test_frames_are_resized_for_the_model() -> None:
    frames = np.full((4, 400, 600, 3), 77, dtype=np.uint8)
    assert working_size((400, 600), (32, 48), None) == (32, 48)
    assert working_size((400, 600), (32, 48), 300) == (200, 300)
    assert working_size((400, 600), (32, 48), 1280) == (400, 600)
    source = ArraySource(frames, np.zeros(100), 8_000, 25.0, (32, 48))
    resized = np.stack(source.read_frames(2, 6))
    assert resized.shape == (6, 32, 48, 3)
    assert (resized == 77).all()
