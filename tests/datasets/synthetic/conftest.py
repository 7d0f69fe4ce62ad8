"""Small corpora that the tests of the talkers look into."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from cavmae.common.settings import LimitedPoolSettings
from cavmae.datasets.synthetic.corpus import render_talkers
from cavmae.datasets.synthetic.settings import CASES, RenderSettings

# Where skia-python's shared libraries (libEGL) are missing, pytest says so.
pytest.importorskip("skia", exc_type=ImportError)

SPLIT = {"valid_share": 0.25, "test_share": 0.25}


def render(out: Path, clips: int, workers: int = 2, **changes: object) -> int:
    """`cavmae render-talkers` in this process, with workers of its own."""
    settings = {"seconds": 1.0, "height": 96, "speakers": 8, **SPLIT, **changes}
    return render_talkers(
        out, clips, RenderSettings(**settings), LimitedPoolSettings(workers=workers)
    )  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips of one to three people in which everything happens often."""
    out = tmp_path_factory.mktemp("crowd") / "out"
    cases = dict.fromkeys(CASES, 0.5)
    share = {"valid_share": 0.0, "test_share": 0.0}
    assert render(out, 10, people="1-3", seconds=1.6, speakers=6, **share, **cases) == 0
    return out


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made recordings of four readers, and files that are none."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    for reader in range(4):
        for take in range(2):
            rate = (16_000, 44_100)[take]
            time = np.arange(3 * rate) / rate
            pitch = 100 + 40 * reader
            # Syllables of random lengths, so that no shift of them fits but the right one.
            edges = np.cumsum(rng.uniform(0.1, 0.3, 40))
            syllables = np.searchsorted(edges, time) % 2
            tone = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 12))
            audio = 0.1 * tone * syllables + rng.normal(0, 1e-4, len(time))
            (folder / f"set{take}").mkdir(exist_ok=True)
            name = f"{reader}-{take}.{'flac' if take else 'wav'}"
            soundfile.write(str(folder / f"set{take}" / name), audio, rate)
    (folder / "1-broken.flac").write_bytes(b"fLaC and then nothing of the kind")
    (folder / "9-broken.wav").write_bytes(b"")
    soundfile.write(str(folder / "2-short.wav"), np.full(4000, 0.1), 16_000)
    soundfile.write(str(folder / "3-silent.wav"), np.zeros(32_000), 16_000)
    (folder / "notes.txt").write_text("read in a quiet room")
    return folder
