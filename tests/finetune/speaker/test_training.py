"""Runs of `cavmae finetune speakers` on small clips: outputs, resuming, refused settings."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from torch import nn

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.finetune.events.config import EventConfig
from cavmae.finetune.events.model import EventClassifier
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.separation.model import SoundSeparator
from cavmae.finetune.separators.settings import UNetOptions
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.finetune.speaker.run import build
from cavmae.finetune.speaker.settings import SpeakerSettings
from cavmae.finetune.train import main
from cavmae.pretrain.model import CAVMAE
from tests.datasets.clips import clip, data_set_of
from tests.finetune.speaker.runs import listed, same_end, words, write
from tests.object_store import BUCKET, object_store
from tests.pretrain.engine.held_out import held_out_metrics
from tests.pretrain.engine.running import run_ranks, trace


def test_a_run_and_what_it_leaves(clips: Manifest, encoder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    held_out = listed(tmp_path, clips)
    command = words(run, clips, encoder, data=held_out, loop={"evaluate_every": 2})
    assert main(command) == 0
    lines = trace(run)
    trained = [line for line in lines if line.get("kind") != "held_out" and "loss" in line]
    measured = [line for line in lines if "iou" in line]
    assert len(trained) == 4
    assert len(measured) == 2
    assert {"sdr", "spectrum", "silence", "state", "dice", "center_vote"} <= set(trained[0])
    model, statistics = load_speaker(str(run / "checkpoints" / "000000004"))
    assert (statistics.mean, statistics.std) == (-6.0, 4.0)
    source = CAVMAE.from_pretrained(encoder).state_dict()
    own = model.encoder.state_dict()
    assert torch.equal(own["blocks_v.0.attn.qkv.weight"], source["blocks_v.0.attn.qkv.weight"])
    assert own["pos_embed_v"].shape[1] == 6  # moved to scenes of 32x48


def test_metrics_do_not_depend_on_processes_and_batches(
    clips: Manifest, encoder: Path, tmp_path: Path
) -> None:
    results = []
    for processes, batch in ((1, 8), (1, 2), (3, 1), (2, 3)):
        changes = {"data": {**listed(tmp_path, clips), "batch_size": batch}}
        command = words(tmp_path / "run", clips, encoder, **changes)[1:3]
        results.append(held_out_metrics(build, SpeakerSettings, command, processes, tmp_path))
    assert len({count for count, _ in results}) > 2
    for _, metrics in results[1:]:
        assert metrics == pytest.approx(results[0][1], rel=1e-4, nan_ok=True)


def test_the_sound_separator_comes_from_its_stage(
    clips: Manifest, encoder: Path, tmp_path: Path
) -> None:
    """Its weights are taken, and stay where its learning rate is 0."""
    torch.manual_seed(5)
    start = SoundSeparator(SoundSeparatorConfig(UNetOptions(width=3), width=16, cue_layers=1))
    start.save_pretrained(tmp_path / "sound")
    for scale in (0.0, 0.5):
        run = tmp_path / f"run{scale}"
        changes = {"sound_from": str(tmp_path / "sound"), "sound_lr_scale": scale}
        changes["sound.separator"] = "tcn"  # as of a recipe, does not count
        main(words(run, clips, encoder, model=changes, loop={"steps": 2}))
        AcceleratorState._reset_state(reset_partial_state=True)
        model, _ = load_speaker(str(run / "checkpoints" / "000000002"))
        assert model.config.sound == start.config
        same = [
            torch.equal(value, start.state_dict()[name])
            for name, value in model.sound.state_dict().items()
        ]
        assert all(same) if scale == 0 else not any(same)


def test_a_model_learns_without_voices_and_gets_a_better_separator(
    clips: Manifest, encoder: Path, tmp_path: Path
) -> None:
    """`--model.freeze voices`, then `--model.init-from` with `--model.sound-from`."""
    sounds = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        sounds.append(SoundSeparator(SoundSeparatorConfig(UNetOptions(width=3), width=16)))
        sounds[-1].save_pretrained(tmp_path / f"sound{seed}")
    first, second = tmp_path / "first", tmp_path / "second"
    changes: dict[str, Any] = {"sound_from": str(tmp_path / "sound5"), "freeze": "voices"}
    main(words(first, clips, encoder, model=changes, loop={"steps": 2}))
    AcceleratorState._reset_state(reset_partial_state=True)
    start = str(first / "checkpoints" / "000000002")
    own = load_speaker(start)[0].state_dict()
    for name, value in sounds[0].state_dict().items():
        assert torch.equal(own[f"sound.{name}"], value), name
    assert "sdr" not in trace(first)[0]
    changes = {"init_from": start, "encoder_from": None, "sound_from": str(tmp_path / "sound6")}
    changes |= {"sound_lr_scale": 0.0}
    main(words(second, clips, encoder, model=changes, loop={"steps": 1}))
    model, _ = load_speaker(str(second / "checkpoints" / "000000001"))
    for name, value in sounds[1].state_dict().items():
        assert torch.equal(model.state_dict()[f"sound.{name}"], value), name
    assert "sdr" in trace(second)[0]
    AcceleratorState._reset_state(reset_partial_state=True)
    other = tmp_path / "other"
    SoundSeparator(SoundSeparatorConfig(UNetOptions(width=4), width=16)).save_pretrained(other)
    with pytest.raises(UsageError, match="differs in its configuration from the separator of"):
        main(words(tmp_path / "no", clips, encoder, model=changes | {"sound_from": str(other)}))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_it_goes_on_to_the_bit(clips: Manifest, encoder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    main(words(whole, clips, encoder))
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    shutil.rmtree(other / "checkpoints" / "000000004")
    AcceleratorState._reset_state(reset_partial_state=True)
    main([*words(other, clips, encoder), "--resume", "auto"])
    same_end(other, whole)


def test_a_trained_encoder_moves(clips: Manifest, encoder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(words(run, clips, encoder, model={"train_encoder": "all"}, loop={"steps": 2}))
    model, _ = load_speaker(str(run / "checkpoints" / "000000002"))
    source = CAVMAE.from_pretrained(encoder).state_dict()
    own = model.encoder.state_dict()
    for name in ("blocks_v.0.attn.qkv.weight", "blocks_a.0.mlp.fc1.weight", "norm_v.weight"):
        assert not torch.equal(own[name], source[name]), name


@pytest.mark.long
def test_a_compiled_encoder_that_keeps_no_activations_learns_the_same(
    clips: Manifest, encoder: Path, tmp_path: Path
) -> None:
    trained = {"train_encoder": "all"}
    main(words(tmp_path / "plain", clips, encoder, model=trained, loop={"steps": 2}))
    AcceleratorState._reset_state(reset_partial_state=True)
    run_with_counts = {"compile": "aot_eager", "checkpoint_activations": True, "steps": 2}
    torch._dynamo.utils.counters.clear()
    main(words(tmp_path / "other", clips, encoder, model=trained, loop=run_with_counts))
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    plain, other = (
        [line["loss"] for line in trace(tmp_path / name)] for name in ("plain", "other")
    )
    assert plain == pytest.approx(other, rel=1e-5)


def test_an_encoder_of_a_fine_tuned_model(clips: Manifest, encoder: Path, tmp_path: Path) -> None:
    """A speaker model with one encoder, and a classifier with another, each start a new model."""
    main(words(tmp_path / "first", clips, encoder, loop={"steps": 1}))
    AcceleratorState._reset_state(reset_partial_state=True)
    speaker = tmp_path / "first" / "checkpoints" / "000000001"
    trained = load_speaker(str(speaker))[0]
    torch.manual_seed(9)
    classifier = EventClassifier(EventConfig(trained.config.encoder, ("a", "b")))
    classifier.save_pretrained(tmp_path / "events")
    record = {"fbank_mean": -3.0, "fbank_std": 2.5, "padding": "silence"}
    (tmp_path / "events" / "preprocessing.json").write_text(json.dumps(record))
    sources: dict[Path, nn.Module] = {speaker: trained.encoder, tmp_path / "events": classifier}
    for number, (name, source) in enumerate(sources.items()):
        run = tmp_path / f"on{number}"
        changes = {"encoder_from": str(name), "train_encoder": "frozen", "width": 24}
        main(words(run, clips, None, model=changes, loop={"steps": 1}))
        AcceleratorState._reset_state(reset_partial_state=True)
        model, statistics = load_speaker(str(run / "checkpoints" / "000000001"))
        assert model.config.width == 24
        weights = source.state_dict()
        for key, value in model.encoder.state_dict().items():
            assert torch.equal(value, weights[key]), key
        assert statistics.mean == (-6.0, -3.0)[number]


def test_an_encoder_from_scratch(clips: Manifest, tmp_path: Path) -> None:
    run = tmp_path / "run"
    scratch = {"encoder_from": None, "encoder.depth": 1, "train_encoder": "all"}
    main(words(run, clips, None, model=scratch, loop={"steps": 1}))
    assert load_speaker(str(run / "checkpoints" / "000000001"))[1].mean == -5.0
    with pytest.raises(UsageError, match="from scratch has to learn"):
        main(words(tmp_path / "b", clips, None, model={**scratch, "train_encoder": "frozen"}))


def test_a_whole_model_goes_on(clips: Manifest, encoder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    main(words(first, clips, encoder, loop={"steps": 1, "save_every": 1}))
    AcceleratorState._reset_state(reset_partial_state=True)
    start = str(first / "checkpoints" / "000000001")
    unchanged = {"model": {"init_from": start, "encoder_from": None}, "optimizer": {"lr": 1e-12}}
    main(words(second, clips, None, loop={"steps": 1}, **unchanged))
    AcceleratorState._reset_state(reset_partial_state=True)
    model, statistics = load_speaker(str(second / "checkpoints" / "000000001"))
    source, source_statistics = load_speaker(start)
    assert statistics == source_statistics
    for name, weight in source.state_dict().items():
        assert torch.allclose(model.state_dict()[name], weight, atol=1e-6), name
    with pytest.raises(UsageError, match=r"made for scenes of .*32, 48.* not .*64, 48"):
        main(words(tmp_path / "c", clips, None, model=unchanged["model"], compose={"height": 64}))
    with pytest.raises(UsageError, match="whole model with an encoder"):
        main(words(tmp_path / "d", clips, encoder, model={"init_from": start}))


@pytest.mark.long
def test_two_processes_and_half_precision(clips: Manifest, encoder: Path, tmp_path: Path) -> None:
    """DDP finds every parameter used, though slots, cues and people differ from clip to clip."""
    run = tmp_path / "run"
    changes: dict[str, Any] = {
        "loop": {"precision": "bf16", "evaluate_every": 3},
        # Audio that is dropped in some steps, and people without a pair, leave no parameter out.
        "model": {"lateral": {"name": "av-nonlocal", "drop_prob": 0.5}},
        "loss": {"sync_weight": 1.0},
    }
    command = words(run, clips, encoder, data=listed(tmp_path, clips), **changes)
    run_ranks("torchrun", tmp_path / "ranks", "cavmae.finetune.train", command)
    losses = [line["loss"] for line in trace(run) if "loss" in line]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    assert sum("sync" in line for line in trace(run)) == 4
    assert sum("iou" in line for line in trace(run)) == 2
    load_speaker(str(run / "checkpoints" / "000000004"))
    # A run resumed by another launcher equals an uninterrupted one.
    other = Path(shutil.copytree(run, tmp_path / "other"))
    shutil.rmtree(other / "checkpoints" / "000000004")
    command = words(other, clips, encoder, data=listed(tmp_path, clips), **changes)
    command += ["--resume", "auto"]
    run_ranks("accelerate", tmp_path / "again", "cavmae.finetune.train", command)
    same_end(other, run)


def test_shards_of_an_object_store_are_copied_to_the_cache(
    clips: Manifest, encoder: Path, tmp_path: Path
) -> None:
    local, remote = tmp_path / "local", tmp_path / "remote"
    assert main(words(local, clips, encoder)) == 0
    with object_store() as store:
        for path in Path(clips.folder).iterdir():
            store.system.put_file(str(path), f"{BUCKET}/set/{path.name}")
        command = words(remote, clips, encoder, data={"cache_dir": str(tmp_path / "cache")})
        assert main([*command, "--data.train", f"s3://{BUCKET}/set"]) == 0
    copies = list((tmp_path / "cache").iterdir())
    assert [p.stat().st_size for p in copies if p.suffix == ".tar"] == [
        Path(clips.path_of(shard)).stat().st_size for shard in clips.shards
    ]
    same_end(remote, local)


def test_people_who_are_trained_and_measured_on_are_named(
    clips: Manifest, encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = listed(tmp_path, clips)
    main(words(tmp_path / "run", clips, encoder, data=held_out, loop={"steps": 1}))
    assert "both trained and measured on (s0, s1, s2)" in caplog.text


def test_scenes_from_several_data_sets(
    clips: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Statistics are those of the mixture; people of any of the data sets are compared."""
    other = data_set_of(tmp_path / "b", [clip(20 + n, speaker=f"t{n}") for n in range(5)])
    write(other)
    (Path(other.folder) / "stats.json").write_text('{"fbank_mean": -9.0, "fbank_std": 3.0}')
    run = tmp_path / "run"
    command = words(
        run, clips, None, data=listed(tmp_path, other), loop={"steps": 1},
        model={"train_encoder": "all", "encoder.depth": 1},
    )  # fmt: skip
    train = json.dumps([{"path": clips.folder, "weight": 3}, other.folder])
    assert main([*command, "--data.train", train]) == 0
    assert "both trained and measured on (t0, t1, t2)" in caplog.text
    _, statistics = load_speaker(str(run / "checkpoints" / "000000001"))
    assert statistics.mean == pytest.approx(-6.0)
    assert statistics.std == pytest.approx((9 + 3) ** 0.5)
    stored = yaml.safe_load((run / "config.yaml").read_text())["data"]["train"]
    assert stored == [{"path": clips.folder, "weight": 3.0}, other.folder]


def test_lists_that_do_not_fit_are_refused_before_training(
    clips: Manifest, encoder: Path, tmp_path: Path
) -> None:
    held_out = listed(tmp_path, clips)
    with pytest.raises(UsageError, match="the model is made for"):
        main(words(tmp_path / "a", clips, encoder, data=held_out, compose={"width": 64}))
    AcceleratorState._reset_state(reset_partial_state=True)
    # A list may use clips that training excludes.
    labelled = [clip(n, speaker=f"s{n}", person=True, labels=("odd",)) for n in range(8)]
    odd = data_set_of(tmp_path / "odd", labelled)
    write(odd)
    data = {**listed(tmp_path, odd), "exclude": ["odd"]}
    main(words(tmp_path / "b", clips, encoder, data=data, loop={"steps": 1, "evaluate_every": 1}))
    assert any("iou" in line for line in trace(tmp_path / "b"))


def test_another_shape_does_not_go_on(clips: Manifest, encoder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(words(run, clips, encoder, loop={"steps": 1}))
    AcceleratorState._reset_state(reset_partial_state=True)
    wider = words(run, clips, encoder, model={"width": 32}, loop={"steps": 2})
    with pytest.raises(CavmaeError, match="is of a model whose width is 16, not 32"):
        main([*wider, "--resume", "auto"])


def test_what_it_refuses(clips: Manifest, encoder: Path, tmp_path: Path) -> None:
    def refused(message: str, kind: type[CavmaeError] = UsageError, **changes: Any) -> None:
        with pytest.raises(kind, match=message):
            main(words(tmp_path / "refused", clips, encoder, **changes))
        AcceleratorState._reset_state(reset_partial_state=True)

    refused("places for 2", model={"slots": 3})
    refused("at least 2", model={"slots": 1})
    refused(
        "model.sound.separator: there is no separator .*; there are unet",
        model={"sound.separator": "wavenet"},
    )
    refused("needs clips of at least 0.512 s", compose={"seconds": 0.32})
    refused("is not a whole number of patches", compose={"height": 40})
    refused("is no folder of weights", CavmaeError, model={"encoder_from": str(tmp_path)})
    refused("go together", data={"held_out": "list.jsonl"})
    refused("no such backend", loop={"compile": "nonsense"})
    refused("8 clips to compose from, not 99", data={"clips": 99})
    refused("is no folder of weights", CavmaeError, model={"sound_from": str(tmp_path)})
    refused("leave model.encoder_from out", model={"init_from": "x"})
    whole = {"init_from": "x", "encoder_from": None, "classes": ["child"]}
    refused("leave model.classes out", model=whole)
    refused("not from 0 to 1", model={"sound_lr_scale": 2.0})
    other = tmp_path / "other"
    SoundSeparator(SoundSeparatorConfig(UNetOptions(width=4), width=16)).save_pretrained(other)
    message = "type 'sound-separator', not 'cav-mae'"
    refused(message, CavmaeError, model={"encoder_from": str(other)})
    refused(r"model.encoder.depth 3: .*have \d", model={"encoder.depth": 3})
    refused("model.encoder.image_height 96: .*have 32", model={"encoder.image_height": 96})
    with pytest.raises(CavmaeError, match="type 'cav-mae', not 'speaker'"):
        load_speaker(str(encoder))
    with pytest.raises(UsageError, match="speakers"):
        main(["singers"])


def test_single_speaker_only(tmp_path: Path, encoder: Path) -> None:
    single = data_set_of(tmp_path / "one", [clip(n, speaker="s", person=True) for n in range(4)])
    write(single)
    with pytest.raises(UsageError, match=r"1 speaking people.*add people"):
        main(words(tmp_path / "run", single, encoder))


def test_no_masks_at_all(tmp_path: Path, encoder: Path) -> None:
    """Voices are learned without masks, from frames side by side."""
    bare = data_set_of(tmp_path / "bare", [clip(n, speaker=f"s{n}", masks=False) for n in range(6)])
    write(bare)
    run = tmp_path / "run"
    main(words(run, bare, encoder, loop={"steps": 2}))
    lines = [line for line in trace(run) if "dice" in line]
    assert len(lines) == 2
    assert all(line["dice"] == 0 and line["spectrum"] > 0 for line in lines)
