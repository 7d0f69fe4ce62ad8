"""Rendering of recordings: files of a user, whatever interrupts it."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import sha256_of
from cavmae.datasets.footage.rendering import (
    LIST,
    WORK,
    make_footage,
    truth_path,
    video_path,
)
from cavmae.datasets.footage.spec import FootageSettings, read_footage_list
from cavmae.datasets.footage.truth import FootageTruth
from cavmae.datasets.media import probe
from cavmae.datasets.media.geometry import cut_from
from cavmae.datasets.media.playback import Playback
from tests.datasets.footage.clips import SHORT, talkers_of


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return talkers_of(tmp_path_factory.mktemp("pool") / "set").folder


@pytest.fixture(scope="module")
def footage(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of each kind, rendered without interruption."""
    out = tmp_path_factory.mktemp("footage")
    make_footage(shards, out, SHORT)
    return out


def test_video_and_truth_are_in_step(footage: Path) -> None:
    for spec in read_footage_list(footage / LIST)[1]:
        truth = FootageTruth.load(truth_path(footage, spec.name))
        info = probe(str(video_path(footage, spec.name)))
        assert info.display == spec.size
        with Playback(info, cut_from(info, spec.size, spec.size)) as playback:
            frames = np.stack(playback.read_frames(0, spec.frames))
            audio = playback.read_audio(0, spec.frames)
        assert truth.people.shape == frames.shape[:3]
        # People are in bright clothes, before a grey background.
        chroma = frames.max(3).astype(int) - frames.min(3)
        assert chroma[truth.people > 0].mean() > 3 * chroma[truth.people == 0].mean()
        mixture = truth.voices.sum(0)
        assert truth.voices.shape == (len(spec.talkers), spec.frames * 640)
        assert np.corrcoef(audio, mixture)[0, 1] > 0.7  # noise, coded


def test_a_killed_run_goes_on_to_the_same_files(shards: str, footage: Path, tmp_path: Path) -> None:
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in dataclasses.asdict(SHORT).items()
        if name not in ("kinds", "seed")
    ]
    words = [sys.executable, "-m", "cavmae.tools.make_footage", shards, "--out", str(tmp_path)]
    process = subprocess.Popen([*words, *options], stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("*.npz"))) < 2 and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for path in tmp_path.glob("*.[mn]p[4z]"):  # what is there is complete
        assert path.read_bytes() == (footage / path.name).read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    assert 2 <= len(kept) < 5
    make_footage(shards, tmp_path, FootageSettings())  # renders the list that is there
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in footage.iterdir()}
    for path in footage.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())


def test_a_list_is_rendered_anywhere(shards: str, footage: Path, tmp_path: Path) -> None:
    shutil.copy(footage / LIST, tmp_path)
    lines = (tmp_path / LIST).read_bytes().splitlines(keepends=True)
    (tmp_path / LIST).write_bytes(b"".join(lines[:2]))
    make_footage(shards, tmp_path, SHORT)
    assert not (tmp_path / WORK).exists()
    assert video_path(tmp_path, "plain-0000").read_bytes() == (
        video_path(footage, "plain-0000").read_bytes()
    )
    with pytest.raises(UsageError, match="seed 0, not 3"):
        make_footage(shards, tmp_path, dataclasses.replace(SHORT, seed=3))
    (tmp_path / LIST).write_bytes(lines[0] + lines[1].replace(b'"clip": "k', b'"clip": "other'))
    with pytest.raises(UsageError, match="names the clip other"):
        make_footage(shards, tmp_path, SHORT)


def test_a_broken_clip_is_named(tmp_path: Path) -> None:
    manifest = talkers_of(tmp_path / "set")
    (entry,) = manifest.shards
    shard = tmp_path / "set" / entry.file
    shard.write_bytes(shard.read_bytes().replace(b"\xff\xd8\xff", b"\x00\x00\x00"))  # of JPEGs
    altered = dataclasses.replace(entry, sha256=sha256_of(shard))
    written = dataclasses.replace(manifest, shards=(altered,)).to_bytes()
    (tmp_path / "set" / "manifest.json").write_bytes(written)
    with pytest.raises(CavmaeError, match=r"plain-0000 needs a clip that is broken.*k\d"):
        make_footage(manifest.folder, tmp_path / "out", SHORT)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LIST]
