"""Labels and clips that do not fit: one sentence each, or what the documentation says."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from cavmae.common.cli import run
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.stream.shuffle import class_balanced_weights
from cavmae.finetune.events.config import EventConfig
from cavmae.finetune.events.labels import ClassList, class_list, read_class_list
from cavmae.finetune.events.model import EventClassifier
from cavmae.finetune.events.run import build
from cavmae.finetune.events.settings import (
    EventDataSettings,
    EventEncoderSettings,
    EventModelSettings,
    EventSettings,
)
from cavmae.finetune.train import main
from cavmae.pretrain.config import EncoderConfig
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.run import RunContext
from cavmae.tools import convert, evaluate
from tests.finetune.events.event_clips import CLASSES, ENCODER, event_set, several
from tests.finetune.events.test_event_runs import train, words

LIST = """index,mid,display_name
1,/m/dog,"dog"
0,/m/bell,"bell"
2,/m/rain,"rain"
3,/t/none,"Hum, of mains"
"""


@pytest.fixture
def listed(tmp_path: Path) -> str:
    path = tmp_path / "class_labels_indices.csv"
    path.write_text(LIST)
    return str(path)


def refused(tmp_path: Path, shards: str, message: str, **changes: Any) -> None:
    with pytest.raises(CavmaeError, match=message):
        main(words(tmp_path / "run", shards, **changes))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_ids_become_names_in_the_order_of_the_file(tmp_path: Path, listed: str) -> None:
    ids = [("/m/dog",), ("rain", "/m/bell"), ("bell",), ("/m/rain",)]
    shards = event_set(tmp_path / "clips", ids).folder
    data = {"labels": listed, "train": shards, "batch_size": 4, "mixup_prob": 0.0}
    settings = EventSettings(
        EventDataSettings(**data, workers=0, label_smoothing=0.0),
        EventModelSettings(encoder=EventEncoderSettings(**ENCODER)),
    )
    parts = build(settings, RunContext(DistEnv(), str(tmp_path / "broken.jsonl"), False))
    batch = next(iter(parts.loader))
    rows = dict(zip(batch["key"], batch["labels"].tolist(), strict=True))
    assert rows == {
        "k0": [0, 1, 0, 0], "k1": [1, 0, 1, 0], "k2": [1, 0, 0, 0], "k3": [0, 0, 1, 0],
    }  # fmt: skip
    task: Any = parts.task
    assert task.model.config.classes == (*CLASSES, "Hum, of mains")


def test_balanced_draws_have_the_frequencies_of_their_weights(tmp_path: Path) -> None:
    labels = [("bell",)] * 6 + [("dog",), ("dog", "rain")]
    manifest = event_set(tmp_path / "clips", labels, samples=1200, frames=1)
    weights = torch.tensor([w for own in class_balanced_weights([labels]) for w in own])
    settings = EventSettings(
        EventDataSettings(
            train=manifest.folder, balanced=True, batch_size=8, workers=0, mixup_prob=0.0
        ),
        EventModelSettings(encoder=EventEncoderSettings(**ENCODER)),
    )
    parts = build(settings, RunContext(DistEnv(), str(tmp_path / "broken.jsonl"), False))
    drawn: Counter[str] = Counter()
    epochs = 150
    for _, batch in zip(range(epochs), parts.loader, strict=False):
        drawn.update(batch["key"])
    expected = 8 * epochs * weights / weights.sum()
    for number, count in enumerate(expected.tolist()):
        assert drawn[f"k{number}"] == pytest.approx(count, abs=5 * count**0.5)


def test_the_classes_of_several_data_sets_are_merged_by_name(tmp_path: Path) -> None:
    """Labels have other numbers in each data set; classes are balanced in each on its own."""
    small = {"samples": 1200, "frames": 1}
    first = event_set(tmp_path / "a", [("rain",)] * 3 + [("bell", "rain")], **small)
    second = event_set(tmp_path / "b", [("dog",)] * 5 + [("bell",)], **small)
    train: Any = [{"path": first.folder, "weight": 1}, {"path": second.folder, "weight": 3}]
    data = {"train": train, "batch_size": 8, "workers": 0, "mixup_prob": 0.0}
    settings = EventSettings(
        EventDataSettings(**data, balanced=True, label_smoothing=0.0),
        EventModelSettings(encoder=EventEncoderSettings(**ENCODER)),
    )
    parts = build(settings, RunContext(DistEnv(), str(tmp_path / "broken.jsonl"), False))
    task: Any = parts.task
    assert task.model.config.classes == CLASSES  # sorted by name
    drawn: Counter[str] = Counter()
    batches = 100
    for _, batch in zip(range(batches), parts.loader, strict=False):
        for key, row in zip(batch["key"], batch["labels"].tolist(), strict=True):
            folder, name = key.split(": ")
            in_first = [1, 0, 1] if name == "k3" else [0, 0, 1]
            in_second = [1, 0, 0] if name == "k5" else [0, 1, 0]
            assert row == (in_first if folder == first.folder else in_second)
            drawn[folder] += 1
            drawn["bell of the second"] += folder == second.folder and name == "k5"
    assert abs(drawn[first.folder] - 2 * batches) < 2
    share = 1 / 1.01 / (1 / 1.01 + 5 / 5.01)
    assert drawn["bell of the second"] == pytest.approx(6 * batches * share, rel=0.2)


def test_a_label_that_one_of_several_data_sets_lacks(tmp_path: Path, listed: str) -> None:
    first = event_set(tmp_path / "a", [("dog",)] * 2).folder
    second = event_set(tmp_path / "b", [("dog",), ("siren",)]).folder
    data = {"train": [first, second], "batch_size": 2}
    refused(
        tmp_path, "", rf"Clip k1 in {second}/.* has the label 'siren', which is none of",
        data=data | {"labels": listed},
    )  # fmt: skip
    third = event_set(tmp_path / "c", [(), ()]).folder
    refused(tmp_path, "", f"No clip of {third} has a label", data={"train": [first, third]})


def test_classes_that_hardly_occur(
    tmp_path: Path, listed: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They are trained and measured; the run names them."""
    shards = event_set(tmp_path / "clips", [("bell",), ("bell",), ("dog",), ("bell",)]).folder
    with caplog.at_level(logging.WARNING):
        data = {"labels": listed, "held_out": shards, "batch_size": 2, "workers": 0}
        last = train(tmp_path / "run", shards, data=data, loop={"steps": 1})
    assert "1 of 4 classes have a single clip in" in caplog.text and ": dog." in caplog.text
    assert "2 of 4 classes have no clip in" in caplog.text
    assert ": rain, Hum, of mains." in caplog.text
    out = tmp_path / "out"
    words_ = [shards, "--model", str(last), "--labels", listed, "--out", str(out), "--workers", "0"]
    assert evaluate.main(words_) == 0
    record = json.loads((out / "events.json").read_text())
    assert [row["clips"] for row in record["classes"]] == [3, 1, 0, 0]
    assert [row["ap"] is None for row in record["classes"]] == [False, False, True, True]
    assert "| 4 clips, 2 of 4 classes |" in (out / "table.md").read_text()


def test_labels_that_do_not_fit(tmp_path: Path, listed: str) -> None:
    strange = event_set(tmp_path / "strange", [("bell",), ("cat",)]).folder
    listed_data = {"labels": listed, "workers": 0}
    message = r"Clip k1 in .* has the label 'cat', which is none of the 4 classes of .*csv"
    refused(tmp_path, strange, message, data=listed_data)
    unlabelled = event_set(tmp_path / "unlabelled", [("bell",), (), ("dog",)]).folder
    refused(tmp_path, unlabelled, "Clip k1 in .* has no label: give it one")
    none = event_set(tmp_path / "none", [(), ()]).folder
    refused(tmp_path, none, "No clip of .* has a label: shard a table")
    both = event_set(tmp_path / "both", several(4)).folder
    single = {"multi_label": False, "encoder": ENCODER}
    refused(tmp_path, both, "has the labels .*: with model.no-multi-label", model=single)
    # Labels that only the held-out set has.
    data = {"held_out": strange, "workers": 0, "batch_size": 2}
    refused(tmp_path, both, "Clip k1 in .*'cat', which is none of the 3 classes of", data=data)
    refused(tmp_path, "", "Name the shards to learn from")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mid,display_name\n/m/a,a\n", "is no list of classes with the columns index"),
        ("index,mid,display_name\nx,/m/a,a\n", "is no list of classes"),
        ("index,mid,display_name\n0,/m/a\n", "a row is too short"),
        ("index,mid,display_name\n1,/m/a,a\n", "has to count the classes from 0"),
        ("index,mid,display_name\n0,/m/a,a\n1,/m/b,a\n", "display_name 'a' occurs twice"),
        ("index,mid,display_name\n", "lists no classes"),
    ],
)
def test_files_that_list_no_classes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "classes.csv"
    path.write_text(text)
    with pytest.raises(CavmaeError, match=message):
        read_class_list(path)


def test_classes_of_weights_and_of_a_file(tmp_path: Path, listed: str) -> None:
    manifest = event_set(tmp_path / "clips", several(4))
    names = ("bell", "dog", "rain", "Hum, of mains")
    # The classes of published weights have numbers only.
    for known in (None, names, ("0", "1", "2", "3")):
        assert class_list(listed, [manifest], known).names == names
    assert class_list(None, [manifest], ("x",)) == ClassList(("x",), {}, "the model")
    assert class_list(None, [manifest]).names == CLASSES
    for known, message in (
        (("bell", "dog", "rain", "cat"), "does not have the model's class 'cat'"),
        (("dog", "bell", "rain", "Hum, of mains"), "in another order: class 0 is"),
        (("0", "1"), "has 4 classes, the model 2"),
    ):
        with pytest.raises(UsageError, match=message):
            class_list(listed, [manifest], known)


def test_a_converted_classifier_gets_its_names_from_the_file(tmp_path: Path, listed: str) -> None:
    torch.manual_seed(0)
    encoder = EncoderConfig(**{**ENCODER, "width": 64, "heads": 1})
    weights = EventClassifier(EventConfig(encoder, tuple("abcd"))).state_dict()
    torch.save({f"module.{k}": v for k, v in weights.items()}, tmp_path / "ft.pth")
    source = [str(tmp_path / "ft.pth"), "--out"]
    assert run(convert.main, [*source, str(tmp_path / "numbers")]) == 0
    named = str(tmp_path / "named")
    assert run(convert.main, [*source, named, "--labels", listed, "--no-multi-label"]) == 0
    config = EventClassifier.from_pretrained(named).config
    assert config.classes[3] == "Hum, of mains" and not config.multi_label
    (tmp_path / "few.csv").write_text("index,mid,display_name\n0,/m/a,a\n")
    wrong = [*source, str(tmp_path / "x"), "--labels", str(tmp_path / "few.csv")]
    with pytest.raises(CavmaeError, match="has 1 classes, the weights 4"):
        convert.main(wrong)
    shards = event_set(tmp_path / "clips", [("/m/dog",), ("rain",)]).folder
    numbered = [shards, "--model", str(tmp_path / "numbers"), "--workers", "0"]
    with pytest.raises(CavmaeError, match="which is none of the 4 classes of the model"):
        evaluate.main(numbered)
    out = tmp_path / "out"
    assert evaluate.main([*numbered, "--labels", listed, "--out", str(out)]) == 0
    record = json.loads((out / "events.json").read_text())
    assert record["figures"]["mean_ap"]["weights"] == "as published"
    assert [row["clips"] for row in record["classes"]] == [0, 1, 1, 0]


def test_clips_of_other_lengths_and_fewer_frames(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Longer clips are cut, shorter ones padded; frames are repeated, and that is said."""
    short = event_set(tmp_path / "short", several(4), samples=4000, frames=2).folder
    last = train(tmp_path / "run", short, loop={"steps": 1})
    longer = event_set(tmp_path / "longer", several(4), samples=16_000, frames=7).folder
    train(tmp_path / "longer-run", longer, loop={"steps": 1})
    options = ["--model", str(last), "--workers", "0", "--frames"]
    with caplog.at_level(logging.WARNING):
        assert evaluate.main([longer, *options, "7"]) == 0
        assert "fewer" not in caplog.text
        assert evaluate.main([short, *options, "7"]) == 0
    assert "4 clips have fewer than 7 frames: some of theirs count twice." in caplog.text
    with pytest.raises(UsageError, match="--frames 0: at least 1"):
        evaluate.main([short, *options, "0"])
    with pytest.raises(UsageError, match="--frames 2: the mode missing_video takes no frames"):
        evaluate.main([short, *options, "2", "--mode", "missing_video"])
    with pytest.raises(UsageError, match="--cue is an option of models of the type 'speaker'"):
        evaluate.main([short, *options, "2", "--cue", "box"])
    with pytest.raises(CavmaeError, match="is no folder of weights"):
        evaluate.main([short, "--model", str(tmp_path / "nothing" / "there")])


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    shards = event_set(tmp_path / "clips", several(4)).folder
    frozen = {"encoder": ENCODER, "train_encoder": "frozen"}
    refused(tmp_path, shards, "An encoder from scratch has to learn", model=frozen)
    both = {"encoder_from": "a", "init_from": "b"}
    refused(tmp_path, shards, "leave model.encoder_from out", model=both)
    other = {"encoder": {**ENCODER, "image_height": 30}}
    refused(tmp_path, shards, "image_height 30 is not made of patches", model=other)
    twice = {"average_from_epoch": 1, "ema": 0.9}
    refused(tmp_path, shards, "average by ema or by average_from_epoch", optimizer=twice)
    large = {"batch_size": 64, "workers": 0}
    average = {"average_from_epoch": 1}
    refused(tmp_path, shards, "an epoch has 0.062 steps", data=large, optimizer=average)
    last = train(tmp_path / "first", shards, loop={"steps": 1})
    deeper = {"encoder_from": str(last), "encoder": {"depth": 3}}
    refused(tmp_path, shards, r"model.encoder.depth 3: the weights have 1; leave it out",
            model=deeper)  # fmt: skip
