"""What several tests share: made videos and data sets of them."""

import dataclasses
import os
from collections.abc import Callable, Generator
from pathlib import Path

import hypothesis
import pytest
import torch

from cavmae.common import worker_pool
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.sharding.job import shard
from cavmae.datasets.sharding.settings import ShardRunSettings, ShardSettings
from cavmae.tools.benchmarks.media import VideoSpec, make_video

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
# Speed is measured by benchmarks; a machine that does other work fails no test.
hypothesis.settings.register_profile("cavmae", deadline=None)
hypothesis.settings.load_profile("cavmae")
# With a GPU, too, the default device is the CPU, since results are compared to the bit.
# CUDA_VISIBLE_DEVICES=0 shows it to the golden tests, which compare to a tolerance.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# Else each of the hundreds of processes that tests start compiles all modules again: a second each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# All processes of pools and benchmarks are forked from one server, which imports these once; each
# of them would import PyTorch for itself where an earlier pool was of another kind.
worker_pool.preload(
    "cavmae.datasets.sharding.clip_extraction",
    "cavmae.datasets.synthetic.clip_writer",
    "cavmae.tools.benchmarks.finetuning",
    "cavmae.tools.benchmarks.pretraining",
)
# Files that take a minute each come first: at the end, one process would work and the others wait.
LONG = (
    "pretrain/engine/test_survival.py",
    "finetune/speaker/test_training.py",
    "datasets/synthetic/test_render.py",
    "finetune/speaker/test_learning.py",
    "pretrain/engine/test_trainer.py",
    "tools/test_interruptions.py",
    "datasets/synthetic/test_lips.py",
)

SMALL = VideoSpec(seconds=2.0, size=(96, 64), rate=16000, channels=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


@pytest.fixture(scope="session")
def media_root() -> Path:
    """Folder of real recordings."""
    root = os.environ.get("CAVMAE_MEDIA")
    if not root or not Path(root).is_dir():
        pytest.skip("CAVMAE_MEDIA does not name a folder of real recordings")
    return Path(root)


@pytest.fixture
def video(tmp_path: Path) -> Callable[..., Path]:
    """Makes a small video: ``video("name.mp4", seconds=3)``."""

    def make(name: str = "video.mp4", **changes: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return make_video(path, dataclasses.replace(SMALL, **changes))  # type: ignore[arg-type]

    return make


def make_shards(
    inputs: list[str] | str,
    out: Path | str,
    run_settings: ShardRunSettings = ShardRunSettings(workers=2, timeout=60.0),  # noqa: B008 - frozen
    **settings: object,
) -> int:
    """`cavmae shard` in this process, with workers of its own."""
    names = [inputs] if isinstance(inputs, str) else inputs
    return shard(names, out, ShardSettings(**settings), run_settings)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """24 clips of 2 s with labels and speakers in 8 shards; none is like another."""
    root = tmp_path_factory.mktemp("made")
    videos = root / "videos"
    videos.mkdir()
    rows = ["path,labels,speaker"]
    for number in range(12):
        spec = dataclasses.replace(SMALL, seconds=4.0, seed=number, clutter=True)
        make_video(videos / f"v{number}.mp4", spec)
        labels = "speech" if number % 3 else "speech;music"
        rows.append(f"v{number}.mp4,{labels},s{number % 4}")
    (videos / "list.csv").write_text("\n".join(rows))
    out = root / "shards"
    made = make_shards(
        str(videos / "list.csv"),
        out,
        profile="speakers",
        clip_seconds=2.0,
        min_seconds=1.0,
        shorter_side=32,
        shard_samples=3,
    )
    assert made == 0
    return Manifest.load(out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Captured logs may hold names that are not UTF-8, which pytest-xdist cannot pass on."""
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]
    return report
