"""Recordings whose fields are coded apart."""

from pathlib import Path

import numpy as np
import pytest

from cavmae.datasets.media import probe
from tests.datasets.fields import write_fields
from tests.datasets.recordings import RATE, Track, assert_in_step, audio_frames, numbers, sweep


@pytest.mark.parametrize("apart", [False, True])
def test_two_fields_are_one_frame(tmp_path: Path, apart: bool) -> None:
    path = write_fields(tmp_path / "x.ts", 50, Track("aac", audio_frames(sweep(0, 2))), apart)
    info = assert_in_step(path, 2)
    assert len(info.packet_pts) == 100


@pytest.mark.parametrize("apart", [False, True])
def test_a_lost_field_moves_no_frame(tmp_path: Path, apart: bool) -> None:
    """The decoder pairs the fields after it differently, and has no stamps for the pairs."""
    audio = Track("aac", audio_frames(sweep(0, 4)))
    info = probe(str(write_fields(tmp_path / "x.ts", 100, audio, apart, lost=range(40, 60))))
    read = numbers(info)
    assert len(read) >= 78
    error = [info.frame_times[i] - n / RATE for i, n in read.items()]
    assert np.ptp(error) <= 1.1 / RATE
