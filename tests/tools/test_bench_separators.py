"""`cavmae bench separators` on made voices: what it leaves, keeps, resumes and refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from cavmae.common import worker_pool
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.mixtures.seed_stream import SeedStream
from cavmae.datasets.mixtures.sound_settings import SoundSettings
from cavmae.datasets.stream.loader import Loader
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.separation.evaluation import evaluate_lists
from cavmae.finetune.separation.model import SoundSeparator
from cavmae.finetune.separation.run import held_out_mixers, load_banks
from cavmae.finetune.separation.settings import SoundDataSettings, SoundLossSettings
from cavmae.finetune.separation.task import SeparationTask
from cavmae.finetune.separators.settings import (
    SEPARATORS,
    UNetOptions,
)
from cavmae.pretrain.engine.optim import build_optimizer
from cavmae.pretrain.engine.settings import OptimizerSettings
from cavmae.tools.bench import main
from cavmae.tools.benchmarks.separator_training import CPU, EntryJob, measure_entry
from cavmae.tools.benchmarks.separators import chosen_entries
from cavmae.tools.benchmarks.settings import SeparatorsBench
from cavmae.tools.benchmarks.timed_training import TrainingState, load_checkpoint, save_checkpoint
from tests.datasets.mixtures.test_sound_mixer import syllables

UNET, UNET_TINY = "{name: unet, width: 2}", "unet-width-2"
TCN = "{name: tcn, width: 4, hidden: 4, shared_blocks: 1, blocks: 1}"
TCN_TINY = "tcn-width-4-hidden-4-shared-blocks-1-blocks-1"
MINUTES = 0.02


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    for number in range(6):
        part = folder / ("train" if number % 2 else "unseen")
        part.mkdir(exist_ok=True)
        wave = syllables(100 + 30 * number, 1.5, number)
        soundfile.write(part / f"s{number}-0.wav", wave, 16_000)
    return folder


@pytest.fixture
def words(speech: Path, tmp_path: Path) -> list[str]:
    return [
        "separators", "--data.train", f"[{speech / 'train'}]", "--data.held-out",
        f"[{speech / 'unseen'}]", "--data.cache", str(speech / "cache"), "--data.batch-size", "1",
        "--data.held-out-mixtures", "8", "--data.workers", "1", "--mix.seconds", "0.64",
        "--width", "8", "--minutes", str(MINUTES), "--evaluations", "2",
        "--entries", f"[{UNET}]", "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def test_separators_are_trained_for_the_same_time_and_kept(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    main(words)
    assert UNET_TINY in capsys.readouterr().out
    trained = []

    def run_here(tasks: Iterator[tuple[int, EntryJob]], work: Any, *_: Any) -> Iterator[Any]:
        for number, job in tasks:
            trained.append(job.label)
            yield worker_pool.Finished(number, work(job, lambda state: None))

    monkeypatch.setattr(worker_pool, "run", run_here)
    main([*words, "--entries", f"[{UNET}, {TCN}]"])
    results = json.loads((out / "separators.json").read_text())["separators"]
    assert trained == [TCN_TINY]
    assert [result["label"] for result in results] == [UNET_TINY, TCN_TINY]
    assert results[0]["training_mb"] > 0  # the other one trained in this process, grown before
    for result in results:
        assert MINUTES * 60 <= result["seconds"] < 2 * MINUTES * 60
        assert result["steps"] > 1 and result["bad_steps"] == 0
        minutes = [point["minutes"] for point in result["curve"]]
        assert len(minutes) == 2 and MINUTES / 2 <= minutes[0] < MINUTES <= minutes[1]
        rate = result["steps"] / result["seconds"]
        assert result["mixtures_per_core_sec"] == pytest.approx(rate)
        assert result["real_time_factor"] > 0
        metrics = result["metrics"]
        assert metrics["unseen_clean_oracle_si_sdri"] > metrics["unseen_clean_si_sdri"]
        assert {"unseen_spoiled_confusion", "unseen_spoiled_si_sdri_similar_pitch"} <= {*metrics}
        folder = out / "entries" / result["label"]
        assert not (folder / "checkpoint.safetensors").exists()
        model = SoundSeparator.from_pretrained(folder)
        assert sum(p.numel() for p in model.parameters()) == result["parameters"]
    text = (out / "separators.md").read_text()
    assert text in capsys.readouterr().out
    assert f"| unseen_spoiled | {UNET_TINY} |" in text and "| oracle masks |" in text
    assert (out / "separators.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="has runs with another lr: choose another --out"):
        main([*words, "--lr", "0.01"])


def test_a_checkpoint_restores_weights_optimizer_and_state(speech: Path, tmp_path: Path) -> None:
    folders, cache = (str(speech / "train"),), str(speech / "cache")
    _, _, banks = load_banks(SoundDataSettings(folders, (), folders, cache, workers=1))
    lists = held_out_mixers(("unseen",), banks, SoundSettings(seconds=0.64))

    def task_of(seed: int) -> tuple[SeparationTask, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = SoundSeparator(SoundSeparatorConfig(UNetOptions(width=2), width=8))
        task = SeparationTask(model, lists["unseen_clean"], lists, SoundLossSettings())
        return task, build_optimizer(task, OptimizerSettings())

    task, optimizer = task_of(0)
    loader = Loader(SeedStream(1, seed=3))
    batches = iter(loader)
    task("training_step", next(batches)).loss.backward()
    optimizer.step()
    state = TrainingState(3.5, 7, 1, 12.0, [{"minutes": 0.1, "unseen_clean_si_sdri": -1.0}])
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, task, optimizer, loader, state)
    other, other_optimizer = task_of(1)
    other_loader = Loader(SeedStream(1, seed=3))
    assert load_checkpoint(path, other, other_optimizer, other_loader) == state
    assert next(iter(other_loader)) == next(batches)
    expected = evaluate_lists(task.eval().model, lists, 8, CPU)
    assert evaluate_lists(other.eval().model, lists, 8, CPU) == expected
    moments = [
        [values["exp_avg"] for values in each.state_dict()["state"].values()]
        for each in (optimizer, other_optimizer)
    ]
    assert moments[0] and all(map(torch.equal, *moments))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CavmaeError, match=r"checkpoint.safetensors is damaged .* remove it"):
        load_checkpoint(path, other, other_optimizer, other_loader)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--entries", "[unett]"], r"--entries: there is no separator 'unett' \(is unet meant"),
        (["--entries", "[{name: unet, widht: 3}]"], "--entries: .*unknown field widht"),
        (["--entries", "[{name: band-split, width: 9}]"], "no multiple of 4 heads"),
        (["--entries", "[unet, {name: unet, width: 32}]"], "--entries has unet twice"),
        (["--data.train", "[]"], r"--data.train '\[FOLDER, ...\]'"),
        (["--minutes", "0"], "--minutes and --lr are above 0"),
    ],
)
def test_bad_usage_is_refused(words: list[str], more: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        main([*words, *more])


def test_minutes_that_are_used_up_by_a_step_are_refused(speech: Path, tmp_path: Path) -> None:
    folders = (str(speech / "train"),)
    data = SoundDataSettings(folders, (), folders, str(speech / "cache"), 1, workers=1)
    bench = SeparatorsBench(minutes=1e-6, data=data, width=8, out=str(tmp_path))
    with pytest.raises(UsageError, match="--minutes 1e-06 is too short for unet: its first"):
        measure_entry(EntryJob(bench, "unet", UNetOptions(width=2)), lambda state: None)


def test_all_separators_are_chosen_unless_some_are_named() -> None:
    data = SoundDataSettings(("a",), (), ("b",))
    assert list(chosen_entries(SeparatorsBench(data=data, out="out"))) == list(SEPARATORS)
    entries = ({"name": "unet", "fusion": {"name": "concat", "width": 8}},)
    assert list(chosen_entries(SeparatorsBench(entries=entries, data=data, out="out"))) == [
        "unet-fusion-concat-width-8"
    ]
