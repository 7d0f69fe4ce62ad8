"""`cavmae bench variants`: runs of equal CPU time, kept and resumed; voices under true masks."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cavmae.common import worker_pool
from cavmae.common.errors import UsageError
from cavmae.datasets.stream.loader import Loader
from cavmae.finetune.speaker.evaluation import evaluate
from cavmae.finetune.speaker.scene_lists import listed_stream
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.run import RunContext
from cavmae.tools import make_scenes
from cavmae.tools.bench import main
from cavmae.tools.benchmarks import timed_training
from cavmae.tools.benchmarks.variant_training import TASKS, VariantJob, metrics_of, run_variant
from cavmae.tools.benchmarks.variants import VariantsBench, columns_of
from tests.datasets.clips import clip, data_set_of
from tests.finetune.events.event_clips import ENCODER, event_set, several
from tests.finetune.speaker.runs import COMPOSE, SETTINGS, write
from tests.pretrain.engine.running import kill, launch

VARIANT = "--model.motion x3d --model.motion.width 8 --model.motion.depth 1"


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a benchmark of speakers that takes two seconds a run."""
    folder = tmp_path_factory.mktemp("variants")
    sets = []
    for name, first in (("fit", 0), ("others", 20)):
        samples = [clip(n, speaker=f"s{n}", person=True) for n in range(first, first + 6)]
        sets.append(data_set_of(folder / name, samples))
        write(sets[-1])
    config = folder / "small.yaml"
    # Workers of the recipe: runs have none, as processes of a pool have no children.
    data = {**SETTINGS["data"], "workers": 1}
    config.write_text(yaml.safe_dump({**SETTINGS, "data": data}))
    scenes = str(folder / "list.jsonl")
    options = [f"--compose.{k}={v}" for k, v in COMPOSE.items()]
    make_scenes.main([sets[1].folder, "--list", scenes, "--count", "8", *options])
    shared = (
        f"--data.train {sets[0].folder} --data.held-out {scenes} --data.held-out-shards "
        f"{sets[1].folder} --model.encoder-from null --model.train-encoder all "
        "--model.encoder.size custom --model.encoder.width 24 --model.encoder.heads 2 "
        "--model.encoder.depth 1 --model.encoder.joint-depth 1"
    )
    return ["variants", "--recipe", str(config), "--options", shared, "--minutes", "0.02",
            "--evaluations", "2", "--variants", f"[{VARIANT}]"]  # fmt: skip


def record_of(out: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads((out / "variants.json").read_text())["runs"]
    return runs


@pytest.mark.long
def test_runs_of_equal_time_and_what_they_leave(
    speakers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = [*speakers, "--out", str(out)]
    assert main([*command, "--seeds", "1"]) == 0
    first = {path.name: path.read_bytes() for path in (out / "runs").iterdir()}
    assert main([*command, "--seeds", "2"]) == 0
    runs = record_of(out)
    assert [(run["variant"], run["seed"]) for run in runs] == [
        ("", 0), (VARIANT, 0), ("", 1), (VARIANT, 1),
    ]  # fmt: skip
    for name, content in first.items():
        assert (out / "runs" / name).read_bytes() == content  # not trained again
    assert runs[0]["parameters"] == runs[2]["parameters"] != runs[1]["parameters"]
    for run in runs:
        assert run["seconds"] >= 1.2 and run["steps"] > 0 and len(run["curve"]) == 2
        assert {"true_masks_si_sdri", "si_sdri", "iou"} <= run["curve"][-1].keys()
    assert not list((out / "training").iterdir())
    text = (out / "variants.md").read_text()
    assert text in capsys.readouterr().out
    assert "| default | " in text and f"| `{VARIANT}` | " in text and " to " in text
    assert (out / "variants.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UsageError, match="runs with another minutes: choose another --out"):
        main([*command, "--minutes", "1"])


@pytest.mark.long
def test_a_killed_benchmark_goes_on(speakers: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*speakers, "--out", str(out), "--seeds", "1", "--minutes", "0.03"]
    command[command.index("--evaluations") + 1] = "3"
    (process,) = launch(["-m", "cavmae.tools.bench", *command])
    deadline = time.monotonic() + 120
    while not (saved := list(out.glob("training/*/*.safetensors"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    kill([process])
    name = saved[0].parent.name
    assert main(command) == 0
    assert len(record_of(out)) == 2
    result = json.loads((out / "runs" / f"{name}.json").read_text())
    assert len(result["curve"]) == 3 and result["seconds"] < 5


def test_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: what differs from speakers is the task."""

    def in_process(tasks: Any, work: Any, *_: Any) -> Any:
        for number, job in tasks:
            yield worker_pool.Finished(number, work(job, lambda state: None))

    monkeypatch.setattr(worker_pool, "run", in_process)
    shards = event_set(tmp_path / "clips", several(6), frames=16).folder
    config = tmp_path / "events.yaml"
    data = {"batch_size": 3, "workers": 0, "train": shards, "held_out": shards, "roll": 0}
    config.write_text(yaml.safe_dump({"data": data, "model": {"encoder": ENCODER}}))
    variant = "--model.motion-height 16 --model.motion-width 16 --model.motion.width 8"
    out = tmp_path / "out"
    command = ["variants", "--task", "events", "--recipe", str(config), "--out", str(out)]
    command += ["--variants", f"[{variant}]", "--seeds", "1", "--minutes", "0.02"]
    threads = torch.get_num_threads()
    assert main([*command, "--evaluations", "1"]) == 0
    torch.set_num_threads(threads)
    plain, moving = record_of(out)
    assert moving["parameters"] > plain["parameters"] and moving["flops"] > plain["flops"]
    assert 0 < plain["curve"][-1]["mean_ap"] <= 1


def test_options_of_the_optimizer_count(speakers: list[str], tmp_path: Path) -> None:
    options = dict(zip(speakers[1::2], speakers[2::2], strict=True))
    variant = "--optimizer.weight-decay 0.3 --optimizer.beta2 0.5"
    bench = VariantsBench(
        recipe=options["--recipe"], options=options["--options"], variants=(variant,),
        minutes=0.02, evaluations=1, out=str(tmp_path),
    )  # fmt: skip
    seen = []
    built = timed_training.build_optimizer

    def spy(task: Any, settings: Any) -> Any:
        seen.append(settings)
        return built(task, settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timed_training, "build_optimizer", spy)
        threads = torch.get_num_threads()
        run_variant(VariantJob(bench, variant, 0), lambda state: None)
        torch.set_num_threads(threads)
    assert (seen[0].weight_decay, seen[0].beta2, seen[0].lr) == (0.3, 0.5, 1e-3)


@pytest.mark.parametrize(
    ("task", "options", "names"),
    [
        ("events", "", ["mean_ap", "auc", "accuracy"]),
        ("speakers", "", ["true_masks_si_sdri", "si_sdri", "confusion", "iou", "state_acc"]),
        ("speakers", "--model.freeze voices", ["iou", "state_acc"]),
        ("speakers", "--model.freeze masks", ["correlation", "true_masks_si_sdri"]),
    ],
)
def test_the_table_shows_what_learns(task: str, options: str, names: list[str]) -> None:
    data = "--data.train x --data.held-out y --data.held-out-shards z"
    data = data if task == "speakers" else "--data.train x --data.held-out y"
    bench = VariantsBench(task=task, options=f"{data} {options}", variants=("-",), out="o")  # type: ignore[arg-type]
    assert [column.name for column in columns_of(VariantJob(bench, "", 0))] == names


@pytest.mark.parametrize(
    ("freeze", "there", "absent"),
    [
        ("voices", {"iou", "state_acc"}, {"true_masks_si_sdri", "correlation"}),
        ("masks", {"true_masks_si_sdri", "correlation"}, {"iou", "si_sdri"}),
    ],
)
def test_what_learns_is_measured(
    speakers: list[str], tmp_path: Path, freeze: str, there: set[str], absent: set[str]
) -> None:
    options = dict(zip(speakers[1::2], speakers[2::2], strict=True))
    bench = VariantsBench(
        recipe=options["--recipe"], variants=("x",), out=str(tmp_path),
        options=f"{options['--options']} --model.freeze {freeze}",
    )  # fmt: skip
    settings = VariantJob(bench, "", 0).settings()
    parts = TASKS["speakers"][2](settings, RunContext(DistEnv(), str(tmp_path / "b"), False))
    assert parts.held_out is not None
    metrics = metrics_of(parts.task.eval(), parts.held_out)
    assert there <= metrics.keys() and not absent & metrics.keys()


def test_true_masks_bind_voices_to_people(speakers: list[str], tmp_path: Path) -> None:
    """Slots of a model whose masks are empty have voices of people under the true masks only."""
    options = dict(zip(speakers[1::2], speakers[2::2], strict=True))
    bench = VariantsBench(
        recipe=options["--recipe"], options=options["--options"], variants=("x",),
        out=str(tmp_path),
    )  # fmt: skip
    settings = VariantJob(bench, "", 0).settings()
    parts = TASKS["speakers"][2](settings, RunContext(DistEnv(), str(tmp_path / "b"), False))
    task: Any = parts.task.eval()
    decode, seen = task.model.decode_voices, []

    def spy(inputs: Any, predictions: Any, masks: Any, presence: Any = None, **options: Any) -> Any:
        seen.append((masks, presence))
        return decode(inputs, predictions, masks, presence, **options)

    task.model.decode_voices = spy
    stream = listed_stream(
        settings.data.held_out, settings.data.held_out_shards, task.model.config, 8
    )
    (batch,) = list(Loader(stream))
    result = evaluate(task, [batch], ("true_masks",))
    assert len(result.scenes["true_masks"]) == 8 and len(seen) == 1
    masks, presence = seen[0]
    size = masks.shape[-2:]
    true = torch.nn.functional.adaptive_avg_pool2d(batch["masks"].flatten(0, 1).float(), size)
    true = true.unflatten(0, batch["masks"].shape[:2])
    for row, present in enumerate(batch["present"] & batch["masked"]):
        for person in present.nonzero().flatten().tolist():
            match = [torch.equal(masks[row, slot], true[row, person]) for slot in range(3)]
            assert sum(match) == 1 and presence[row, match.index(True)] == 1
    again = evaluate(task, [batch], ("true_masks",))
    assert repr(again.scenes) == repr(result.scenes)  # no pixel is drawn
    assert {"true_masks_si_sdri", "iou"} <= metrics_of(task, [batch]).keys()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--variants", "[]"], "needs --out FOLDER and --variants"),
        (["--variants", "[a, a]"], "name each of the others once"),
        (["--options", "--data.train x"], "measures on what is held out"),
        (["--variants", "['--loop.steps 3']"], "loop.steps does not count in runs of equal time"),
        (["--variants", "['--optimizer.ema 0.9']"], "optimizer.ema does not count"),
        (["--recipe", "other"], "--config other: there is no such file"),
        (["--seeds", "0"], "--seeds, --evaluations and --jobs at least 1"),
    ],
)
def test_bad_usage(speakers: list[str], tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        main([*speakers, "--out", str(tmp_path / "out"), *words])


def test_an_unknown_option_of_a_variant_is_named(
    speakers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*speakers, "--out", str(tmp_path / "out"), "--variants", "[--model.nothing 1]"])
    assert "model.nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
