"""`cavmae expand` on small clips: what it leaves, keeps, resumes after a kill, and refuses."""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from cavmae.common import worker_pool
from cavmae.common.cli import parse_settings, parser
from cavmae.common.errors import UsageError
from cavmae.finetune.motion.settings import MOTION, X3DOptions
from cavmae.finetune.speaker.settings import SpeakerSettings
from cavmae.tools.expand import main
from cavmae.tools.expanding.axes import Network, axes_of
from cavmae.tools.expanding.cost import CostBook, gmacs_per_second, ms_per_second
from cavmae.tools.expanding.settings import ExpandDataSettings, ExpandSettings
from cavmae.tools.expanding.trial import TRAINING, TRIALS, TrialJob
from tests.datasets.clips import clip, data_set_of
from tests.pretrain.engine.running import kill, launch

MINUTES = 0.008
START = X3DOptions(width=8, bottleneck=1.0, depth=1, frame_stride=2)
DATA = ExpandDataSettings("train", "held-out")


def clips(folder: Path, numbers: range, frames: int, **changes: Any) -> str:
    samples = [clip(n, True, frames=frames, speaker=f"s{n}", **changes) for n in numbers]
    manifest = data_set_of(folder, samples)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return str(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("shards")
    return {
        "train": clips(folder / "train", range(3), 16),
        "held_out": clips(folder / "held-out", range(3, 6), 16),
        "short": clips(folder / "short", range(6, 9), 8),
        "slow": clips(
            folder / "slow", range(9, 12), 16, duration=1.6,
            frame_times=tuple(n / 10 for n in range(16)),
        ),
    }  # fmt: skip


@pytest.fixture
def words(shards: dict[str, str], tmp_path: Path) -> list[str]:
    return [
        "--config", "x3d", "--out", str(tmp_path / "out"), "--data.train", shards["train"],
        "--data.held-out", shards["held_out"], "--data.batch-size", "2", "--data.scenes", "4",
        "--data.held-out-scenes", "4", "--compose.height", "32", "--compose.width", "32",
        "--compose.seconds", "0.64", "--seconds", "0.32", "--resolution", "16",
        "--motion.frame-stride", "2", "--width", "8", "--minutes", str(MINUTES),
        "--evaluations", "2", "--axes", "[frame_stride, seconds, resolution]",
    ]  # fmt: skip


def budget_of(factor: float) -> list[str]:
    """Budget as a multiple of the start's cost."""
    return ["--budget-gmacs", str(factor * gmacs_per_second(Network(START, 16, 0.32)))]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the networks that are trained, in this process."""
    labels: list[str] = []

    def run_here(tasks: Iterator[tuple[int, TrialJob]], work: Any, *_: Any) -> Iterator[Any]:
        for number, job in tasks:
            labels.append(job.network.label)
            yield worker_pool.Finished(number, work(job, lambda state: None))

    monkeypatch.setattr(worker_pool, "run", run_here)
    return labels


def test_a_search_and_what_it_leaves(
    words: list[str], tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main([*words, *budget_of(2.1)])
    record = json.loads((out / "expand.json").read_text())
    path = record["path"]
    assert path[0]["kept"]["axis"] is None
    assert path[0]["kept"]["network"]["motion"]["frame_stride"] == 2
    # The next resolution would overshoot, and none lies between: it is not even tried.
    assert [trial["axis"] for trial in path[1]["tried"]] == ["frame_stride", "seconds"]
    assert {step["kept"]["axis"] for step in path} == {None, "frame_stride", "seconds"}
    assert len(trained) == len(set(trained)) == len(list((out / TRIALS).iterdir()))
    for file in (out / TRIALS).iterdir():
        trial = json.loads(file.read_text())
        assert MINUTES * 60 <= trial["seconds"] < 2 * MINUTES * 60 and trial["steps"] > 1
        assert -1 <= trial["score"] == trial["curve"][-1]["correlation"] <= 1
        assert len(trial["curve"]) == 2 and trial["bad_steps"] == 0
    assert not list((out / TRAINING).iterdir())
    text = (out / "expand.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "| 1 | seconds |" in text.replace("**", "")
    assert (out / "expand.png").stat().st_size > 10_000
    end = next(line for line in text.splitlines() if line.startswith("End: "))
    settings, _ = parse_settings(parser("", ""), SpeakerSettings, end.split("`")[1].split())
    kept = path[-1]["kept"]["network"]
    assert settings.model.head_motion == X3DOptions(
        **{key: value for key, value in kept["motion"].items() if key != "name"}
    )
    assert settings.model.head_size == kept["resolution"]
    assert settings.compose.seconds == kept["seconds"] == settings.model.key_frames * 0.32

    before = len(trained)
    main([*words, *budget_of(2.1)])
    assert len(trained) == before
    with pytest.raises(UsageError, match="has runs with another lr: choose another --out"):
        main([*words, *budget_of(2.1), "--lr", "0.01"])


@pytest.mark.long
def test_a_killed_search_goes_on(words: list[str], tmp_path: Path, trained: list[str]) -> None:
    out = tmp_path / "out"
    words = [*words, *budget_of(1.01), "--minutes", "0.02", "--evaluations", "4"]
    main([*words, "--axes", "[resolution]"])  # which has no value that fits
    (finished,) = (out / TRIALS).iterdir()
    content = finished.read_bytes()
    trained.clear()
    words += ["--axes", "[seconds]"]
    (process,) = launch(["-m", "cavmae.tools.expand", *words])
    deadline = time.monotonic() + 120
    while not list(out.glob(f"{TRAINING}/*/*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    kill([process])
    (checkpoint,) = out.glob(f"{TRAINING}/*/*.safetensors")
    with safe_open(str(checkpoint), "pt") as file:
        interrupted = json.loads(file.metadata()["state"])
    main(words)
    assert trained == [checkpoint.parent.name] != [finished.stem]
    assert finished.read_bytes() == content
    trial = json.loads((out / TRIALS / f"{trained[0]}.json").read_text())
    assert len(trial["curve"]) == 4
    assert trial["curve"][: len(interrupted["curve"])] == interrupted["curve"] != []
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--axes", "[widht]"], "--axes: x3d has no axis 'widht'; there are frame_stride, seconds"),
        (["--budget-gmacs", "1e-9"], "--budget-gmacs 1e-09 is below the cost of the start"),
        (["--budget-ms", "5"], "Give one budget above 0"),
        (["--budget-gmacs", "0"], "Give one budget above 0"),
        (["--seconds", "0.4"], r"--seconds 0.4: .*choose from \[0.32, 0.64\]"),
        (["--seconds", "0.96"], "--seconds 0.96: a clip is a multiple of 0.32 s"),
        (["--resolution", "40"], "--resolution 40: a multiple of 4 from 16 to 32"),
        (["--data.train", "short"], "last 0.32 s, less than --compose.seconds 0.64"),
        (["--data.train", "slow"], "have 10 frames a second, the pathway reads up to 25"),
        (["--data.held-out", "train"], "people or videos of --data.held-out .* trained on, too"),
        (["--minutes", "0"], "--minutes and --lr are above 0"),
        (["--data.held-out", ""], "--data.held-out is empty"),
    ],
)
def test_bad_usage_is_refused(
    words: list[str], shards: dict[str, str], more: list[str], message: str
) -> None:
    more = [shards.get(word, word) for word in more]
    with pytest.raises(UsageError, match=message):
        main([*words, *budget_of(2), *more])


def test_both_data_sets_are_named() -> None:
    with pytest.raises(UsageError, match="expand needs --out FOLDER, and shards"):
        main(["--out", "out", "--data.train", "clips"])


def test_clips_of_few_frames_do_for_a_pathway_that_leaves_frames_out(
    words: list[str], shards: dict[str, str], tmp_path: Path, trained: list[str]
) -> None:
    more = ["--data.train", shards["slow"], "--axes", "[resolution]", "--motion.frame-stride", "3"]
    main([*words, *budget_of(1), *more])
    assert len(trained) == 1


@pytest.mark.parametrize("name", MOTION)
def test_every_pathway_has_axes_that_cost_more_along_them(name: str) -> None:
    kind = MOTION.options(name)
    start = kind(**dict.fromkeys(kind.shrinking, 4))
    assert start.growing, "docs/extending.md says what these are"
    settings = ExpandSettings(out="out", budget_gmacs=1.0, motion=start, resolution=32, data=DATA)
    for axis in axes_of(settings, 48):
        costs = []
        for value in axis.values[:3]:
            values = {"motion": start, "resolution": 32, "seconds": 0.64}
            if axis.name in values:
                network = Network(**{**values, axis.name: value})  # type: ignore[arg-type]
            else:
                motion = dataclasses.replace(start, **{axis.name: value})
                network = Network(motion, 32, 0.64)
            costs.append(gmacs_per_second(network) * network.seconds)
        # Channels of a bottleneck are rounded.
        assert costs == sorted(costs) and costs[-1] > costs[0], axis.name


def test_multiply_adds_are_those_of_a_second() -> None:
    base = gmacs_per_second(Network(START, 16, 0.32))
    assert gmacs_per_second(Network(START, 32, 0.32)) == pytest.approx(4 * base, rel=0.02)
    assert gmacs_per_second(Network(START, 16, 0.64)) == pytest.approx(base, rel=0.02)
    every = X3DOptions(width=8, bottleneck=1.0, depth=1, frame_stride=1)
    assert gmacs_per_second(Network(every, 16, 0.32)) == pytest.approx(2 * base, rel=0.02)


def test_measured_costs_are_kept(tmp_path: Path) -> None:
    network = Network(START, 16, 0.32)
    book = CostBook(tmp_path / "costs.json", measured=True)
    assert book.measure is ms_per_second
    measured = book.cost(network)
    assert measured > 0
    assert CostBook(tmp_path / "costs.json", measured=True).cost(network) == measured
