"""Runs of `cavmae finetune events` and `cavmae evaluate`: outputs, resuming, averaging."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from cavmae.common.cli import parse_settings, parser
from cavmae.common.cli import run as run_command
from cavmae.common.errors import UsageError
from cavmae.finetune.events.config import EventConfig, Mode
from cavmae.finetune.events.factory import load_events
from cavmae.finetune.events.model import EventClassifier
from cavmae.finetune.events.run import build
from cavmae.finetune.events.settings import EventSettings
from cavmae.finetune.train import main
from cavmae.pretrain.config import CAVMAEConfig, EncoderConfig
from cavmae.pretrain.engine.optim import learning_rate
from cavmae.pretrain.model import CAVMAE
from cavmae.tools import evaluate
from tests.finetune.events.event_clips import CLASSES, ENCODER, event_set, several
from tests.pretrain.engine.held_out import held_out_metrics
from tests.pretrain.engine.running import finish, launch, trace

SETTINGS: dict[str, Any] = {
    "data": {"batch_size": 4, "workers": 0, "shuffle_buffer": 5, "freq_mask": 8, "time_mask": 8,
             "roll": 4},
    "model": {"encoder": ENCODER},
    "optimizer": {"lr": 1e-3, "warmup": 0},
    "loop": {"epochs": 3, "log_every": 1, "save_every": 1, "keep": 99, "threads": 1,
             "tracker": "none"},
}  # fmt: skip
CONFIGS = Path(__file__).parents[3] / "finetune" / "events" / "configs"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> str:
    """10 clips, no multiple of a batch: epochs end inside of steps."""
    return event_set(tmp_path_factory.mktemp("events") / "clips", several(10)).folder


def words(run: Path, shards: str, **changes: Any) -> list[str]:
    parts = {**SETTINGS, **changes}
    settings = {part: {**SETTINGS.get(part, {}), **changes.get(part, {})} for part in parts}
    settings["data"] = {"train": shards, **settings["data"]}
    path = run.parent / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return ["events", "--config", str(path), "--out", str(run)]


def train(run: Path, shards: str, **changes: Any) -> Path:
    assert main(words(run, shards, **changes)) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    return sorted((run / "checkpoints").iterdir())[-1]


def measured(shards: str, model: Path | str, out: Path, *more: str) -> dict[str, Any]:
    options = ["--model", str(model), "--out", str(out), "--workers", "0", *more]
    assert evaluate.main([shards, *options]) == 0
    record: dict[str, Any] = json.loads((out / "events.json").read_text())
    return record


def test_the_mean_of_epochs_resumes_to_the_bit_over_their_ends(clips: str, tmp_path: Path) -> None:
    """10 clips in batches of 4: epochs end after 3 (2.5), 5 and 8 (7.5) steps."""
    changes: dict[str, Any] = {
        "data": {"balanced": True}, "optimizer": {"average_from_epoch": 2},
    }  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    last = train(whole, clips, **changes)
    assert last.name == "000000008"
    folder = last.parent
    assert not (folder / "000000004" / "average").exists()  # as no epoch has counted yet
    weights = [load_file(folder / f"{n:09d}" / "model.safetensors") for n in (5, 8)]
    mean = load_file(last / "average" / "model.safetensors")
    for name, value in mean.items():
        torch.testing.assert_close(value, (weights[0][name] + weights[1][name]) / 2)
    assert any(not torch.equal(mean[name], weights[1][name]) for name in mean)
    preprocessing = json.loads((last / "average" / "preprocessing.json").read_text())
    assert preprocessing["averaging"] == {"first_epoch": 2, "last_epoch": 3}
    assert "averaging" not in json.loads((last / "preprocessing.json").read_text())
    for stop in (4, 5, 6):  # before, at and after the end of the epoch that is averaged first
        shutil.copytree(whole, parts)
        for step in range(stop + 1, 9):
            shutil.rmtree(parts / "checkpoints" / f"{step:09d}")
        assert main([*words(parts, clips, **changes), "--resume", "auto"]) == 0
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in ("model", "average/model", "trainer"):
            files = [r / "checkpoints" / last.name / f"{name}.safetensors" for r in (whole, parts)]
            assert files[0].read_bytes() == files[1].read_bytes()
        shutil.rmtree(parts)


def test_it_learns_32_clips_by_heart_and_measures_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = event_set(tmp_path / "clips", several(32), frames=4).folder
    off = {"mixup_prob": 0, "label_smoothing": 0, "freq_mask": 0, "time_mask": 0, "noise": False,
           "roll": 0}  # fmt: skip
    last = train(
        tmp_path / "run", shards, data={**off, "batch_size": 16, "held_out": shards},
        optimizer={"lr": 3e-3, "average_from_epoch": 30},
        loop={"epochs": 40, "save_every": 0, "log_every": 10},
    )  # fmt: skip
    lines = trace(tmp_path / "run")
    held_out = [line for line in lines if line["kind"] == "held_out"]
    assert held_out[-1]["mean_ap"] > 0.99 and held_out[-1]["accuracy"] > 0.99
    capsys.readouterr()
    out = tmp_path / "out"
    record = measured(shards, last / "average", out, "--frames", "4")
    figure = record["figures"]["mean_ap"]
    assert figure.pop("value") > 0.99
    weights = "mean after epochs 30 to 40"
    assert figure == {"mode": "multimodal", "frames": "4, averaged", "weights": weights}
    printed = capsys.readouterr().out
    assert "| multimodal | 4, averaged | mean after epochs 30 to 40 |" in printed
    assert "| 32 clips, 3 of 3 classes |" in printed
    assert printed.strip() == (out / "table.md").read_text().strip()
    assert (out / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    assert [row["name"] for row in record["classes"]] == list(CLASSES)
    single = sum(len(labels) == 1 for labels in several(32))
    assert sum(map(sum, record["confusion"])) == single
    # The middle frame, and modalities alone.
    record = measured(shards, last, tmp_path / "sound", "--mode", "missing_video")
    beside = {"mode": "missing_video", "frames": "none", "weights": "not averaged"}
    assert record["figures"]["auc"] | beside == record["figures"]["auc"]
    with pytest.raises(UsageError, match="another model and another --mode or --frames"):
        measured(shards, last, out)
    record = measured(shards, last, tmp_path / "middle")
    assert record["figures"]["mean_ap"]["value"] == pytest.approx(held_out[-1]["mean_ap"])
    assert record["figures"]["mean_ap"]["frames"] == "1, the middle"


@pytest.mark.parametrize("modalities", ["audio_only", "video_only"])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_probes_of_one_modality_train_the_head_alone(
    tmp_path: Path, clips: str, modalities: Mode, pooling: str
) -> None:
    torch.manual_seed(3)
    encoder = tmp_path / "encoder"
    CAVMAE(CAVMAEConfig(**ENCODER, decoder_width=16, decoder_heads=2, decoder_depth=1)
           ).save_pretrained(encoder)  # fmt: skip
    statistics = {"fbank_mean": -7.0, "fbank_std": 3.0, "padding": "silence"}
    (encoder / "preprocessing.json").write_text(json.dumps(statistics))
    model = {
        "encoder_from": str(encoder), "train_encoder": "frozen", "pooling": pooling,
        "modalities": modalities, "encoder": {"audio_frames": 48},
    }  # fmt: skip
    last = train(tmp_path / "run", clips, model=model, loop={"steps": 2})
    trained = load_events(str(last))
    assert trained.config.modalities == modalities and trained.config.encoder.audio_frames == 48
    own, before = trained.state_dict(), load_file(encoder / "model.safetensors")
    heads = [name for name in own if name not in before]
    assert {name.split(".")[0] for name in heads} == {"mlp_head", *({"pool"} & {
        name.split(".")[0] for name in heads})}  # fmt: skip
    assert any(name.startswith("pool.") for name in heads) == (pooling == "attention")
    for name in set(own) - set(heads) - {"pos_embed_a"}:  # of another grid
        assert torch.equal(own[name], before[name]), name
    assert json.loads((last / "preprocessing.json").read_text()) == statistics
    record = measured(clips, last, tmp_path / "out")
    assert record["figures"]["mean_ap"]["mode"] == modalities
    assert run_command(evaluate.main, [clips, "--model", str(last), "--mode", "multimodal"]) == 2


def test_learned_positions_and_the_heads_rate(tmp_path: Path, clips: str) -> None:
    """A head at a millionth of the rate hardly moves, positions and encoder do."""
    first = train(tmp_path / "first", clips, loop={"steps": 1}, model={"modalities": "audio_only"})
    start = load_events(str(first)).state_dict()
    model = {"init_from": str(first), "learned_positions": True, "head_lr_scale": 1e-6}
    model["encoder"] = {}
    last = train(tmp_path / "run", clips, model=model, loop={"steps": 1})
    end = load_events(str(last)).state_dict()
    moved = {name: float((end[name] - start[name]).abs().max()) for name in end}
    assert moved["pos_embed_a"] > 1e-4 and moved["blocks_a.0.attn.qkv.weight"] > 1e-4
    assert 0 < moved["mlp_head.1.weight"] < 1e-7
    for name in ("pos_embed_v", "blocks_v.0.attn.qkv.weight", "norm.weight"):
        assert moved[name] == 0, name  # of the other modality
    assert load_events(str(last)).config.modalities == "audio_only"


@pytest.mark.long
def test_the_command_in_two_processes_with_one_label_a_clip(tmp_path: Path) -> None:
    labels = [(CLASSES[n % 3],) for n in range(6)]
    shards = event_set(tmp_path / "clips", labels).folder
    command = words(tmp_path / "run", shards, model={"multi_label": False, "encoder": ENCODER})
    command += ["--loop.steps", "2", "--data.held_out", shards]
    for code, stderr in finish(launch(["-m", "cavmae.finetune.train", *command], 2)):
        assert code == 0, stderr
    last = tmp_path / "run/checkpoints/000000002"
    config = json.loads((last / "config.json").read_text())
    assert config["classes"] == list(CLASSES) and config["multi_label"] is False
    record = measured(shards, last, tmp_path / "out")
    assert sum(map(sum, record["confusion"])) == 6


def test_weights_of_a_fine_tuned_file_start_a_classifier(tmp_path: Path, clips: str) -> None:
    torch.manual_seed(1)
    encoder = EncoderConfig(**{**ENCODER, "width": 64, "heads": 1})
    published = EventClassifier(EventConfig(encoder, ("0", "1"))).state_dict()
    torch.save({f"module.{k}": v for k, v in published.items()}, tmp_path / "ft.pth")
    model = {"encoder_from": str(tmp_path / "ft.pth"), "encoder": {}}
    last = train(tmp_path / "run", clips, model=model, loop={"steps": 1}, optimizer={"lr": 1e-9})
    own = load_events(str(last))
    assert own.config.classes == CLASSES
    for name, value in own.state_dict().items():
        if not name.startswith("mlp_head"):
            torch.testing.assert_close(value, published[name], atol=1e-6, rtol=0)
    record = json.loads((last / "preprocessing.json").read_text())
    assert record == {"fbank_mean": -5.081, "fbank_std": 4.4849, "padding": "zero"}
    again = {"encoder_from": str(last), "encoder": {}}
    assert train(tmp_path / "again", clips, model=again, loop={"steps": 1}).name == "000000001"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_recipes_have_the_numbers_of_the_specification(name: str) -> None:
    settings, _ = parse_settings(
        parser("x", ""), EventSettings, ["--config", str(CONFIGS / f"{name}.yaml")]
    )
    # rate, head, batch, epochs, halved from, averaged from, balanced, multi-label
    table = {
        "as20k": (5e-5, 100, 36, 15, 5, 3, False, True),
        "as2m": (1e-5, 50, 48, 10, 2, 1, True, True),
        "vggsound": (1e-4, 10, 48, 10, 2, 3, True, False),
    }
    if name == "small-set":
        assert settings.model.encoder.size == "tiny" and settings.optimizer.average_from_epoch
        return
    data, model, optimizer, loop = settings.data, settings.model, settings.optimizer, settings.loop
    lr, head, batch, epochs, halve, average, balanced, multi_label = table[name]
    assert (optimizer.lr, model.head_lr_scale, data.batch_size) == (lr, head, batch)
    assert (loop.epochs, optimizer.average_from_epoch) == (epochs, average)
    assert (data.balanced, model.multi_label) == (balanced, multi_label)
    assert (optimizer.name, optimizer.beta1, optimizer.beta2) == ("adam", 0.95, 0.999)
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (5e-7, 0)
    assert (data.mixup_prob, data.mixup_alpha, data.label_smoothing) == (0.5, 10, 0.1)
    assert (data.freq_mask, data.time_mask, data.noise, data.roll) == (48, 192, True, 1024)
    for steps in (epochs, epochs * 554):
        rates = [learning_rate(optimizer, step, steps) for step in range(steps)]
        per = steps // epochs
        expected = [lr * 0.5 ** max(0, epoch - halve + 1) for epoch in range(epochs)]
        assert rates == [rate for rate in expected for _ in range(per)]


def test_metrics_do_not_depend_on_processes_and_batches(tmp_path: Path) -> None:
    clips = event_set(tmp_path / "clips", several(10), shards=5).folder
    results = []
    for processes, batch in ((1, 16), (1, 3), (3, 2), (4, 8)):
        changes = {"data": {"held_out": clips, "batch_size": batch}}
        command = words(tmp_path / "run", clips, **changes)[1:3]
        results.append(held_out_metrics(build, EventSettings, command, processes, tmp_path))
    assert len({count for count, _ in results}) > 2
    for _, metrics in results[1:]:
        assert metrics == pytest.approx(results[0][1], rel=1e-5)


def test_a_run_goes_on_with_the_classes_and_the_average_that_it_has(
    tmp_path: Path, clips: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Equal shapes are not enough: rows of the head would be called by other names."""
    run, average = tmp_path / "run", {"average_from_epoch": 1}
    begun = words(run, clips, loop={"epochs": 1}, optimizer=average)
    assert main(begun) == 0
    config = (run / "config.yaml").read_text()
    table = tmp_path / "classes.csv"
    rows = [f"{n},/m/{name},{name}" for n, name in enumerate(reversed(CLASSES))]
    table.write_text("\n".join(["index,mid,display_name", *rows]), encoding="utf-8-sig")
    for changes, message in (
        ({"data": {"labels": str(table)}}, 'classes is ["bell", "dog", "rain"], not ["rain", '),
        ({"model": {"encoder": ENCODER, "pooling": "attention"}}, 'pooling is "mean", not "att'),
        ({"optimizer": {"average_from_epoch": 2}}, "is one of optimizer.average_from_epoch 1: set"),
        ({"optimizer": {"ema": 0.9}}, "is one of optimizer.average_from_epoch 1: set"),
    ):
        AcceleratorState._reset_state(reset_partial_state=True)
        again = words(run, clips, **{"loop": {"epochs": 2}, "optimizer": average, **changes})
        assert run_command(main, [*again, "--resume", "auto"]) in (1, 2)
        assert message in capsys.readouterr().err
        assert (run / "config.yaml").read_text() == config  # a refused one is none of this run
    AcceleratorState._reset_state(reset_partial_state=True)
    late = words(tmp_path / "late", clips, loop={"epochs": 1}, optimizer={"average_from_epoch": 5})
    caplog.clear()
    assert main(late) == 0
    assert "ends after 1 epochs, before optimizer.average_from_epoch 5: no weights" in caplog.text


def test_a_classifier_is_not_quietly_another_one(
    tmp_path: Path, clips: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = train(tmp_path / "first", clips, loop={"epochs": 1})
    model = {"init_from": str(last), "encoder": {}}
    for changes, message in (
        ({"modalities": "audio_only"}, "model.modalities audio_only: the classifier of model.init"),
        ({"pooling": "attention"}, "model.pooling attention: the classifier of model.init_from"),
        ({"multi_label": False}, "model.multi_label False: the classifier of model.init_from has"),
    ):
        command = words(tmp_path / "again", clips, model={**model, **changes})
        assert run_command(main, command) == 2
        assert message in capsys.readouterr().err
        AcceleratorState._reset_state(reset_partial_state=True)
    frozen = {"encoder_from": str(last), "train_encoder": "frozen"}
    encoder = {"temporal": "divided", "frames": 2}
    command = words(tmp_path / "probe", clips, model={**frozen, "encoder": encoder})
    assert run_command(main, command) == 2
    assert "frozen: attention divided is new to these weights" in capsys.readouterr().err


def test_metrics_in_training_say_their_conditions(tmp_path: Path, clips: str) -> None:
    train(tmp_path / "run", clips, data={"held_out": clips}, loop={"epochs": 1})
    (line,) = (line for line in trace(tmp_path / "run") if line["kind"] == "held_out")
    expected = {"mode": "multimodal", "frames": "1, the middle", "weights": "not averaged"}
    assert line | expected == line
