"""Classes that are added to a trained speaker model, with its trunk frozen."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from torch import Tensor

from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.train import main
from cavmae.pretrain.engine.tensor_files import read_tensors
from tests.datasets.clips import clip, data_set_of
from tests.finetune.speaker.runs import write
from tests.finetune.speaker.scenes import batch, model, task

STEPS = 6
SETTINGS: dict[str, Any] = {
    "data": {"batch_size": 2, "workers": 0},
    "compose": {"height": 32, "width": 48, "seconds": 0.64, "people": [0, 0, 1]},
    "model": {"freeze": "trunk"},
    "loss": {"points": 32, "hint_prob": 1.0},
    "optimizer": {"lr": 0.05, "weight_decay": 0.1, "ema": 0.5},
    "loop": {"steps": STEPS, "save_every": 3, "threads": 1, "tracker": "none"},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    labels = (("singer",), ("guide",), ("child", "twin"))
    samples = [clip(n, speaker=f"s{n}", person=True, labels=labels[n % 3]) for n in range(6)]
    manifest = data_set_of(tmp_path_factory.mktemp("clips") / "set", samples)
    write(manifest)
    return manifest


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for a model that was trained with two classes."""
    folder = tmp_path_factory.mktemp("trained") / "000000001"
    model(classes=("adult", "child")).save_pretrained(folder)
    (folder / "preprocessing.json").write_text('{"fbank_mean": -6.0, "fbank_std": 4.0}')
    return folder


@pytest.fixture(scope="module")
def first(clips: Manifest, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a run that added a class."""
    return add(tmp_path_factory.mktemp("first") / "run", clips, trained, "singer")


def words(run: Path, clips: Manifest, start: Path | None, *names: str, **changes: Any) -> list[str]:
    settings = {part: {**values, **changes.get(part, {})} for part, values in SETTINGS.items()}
    settings["data"]["train"] = clips.folder
    added = {"init_from": start and str(start), "add_classes": list(names)}
    settings["model"] = added | settings["model"]
    path = run.parent / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return ["speakers", "--config", str(path), "--out", str(run)]


def add(run: Path, *arguments: Any) -> Path:
    main(words(run, *arguments))
    AcceleratorState._reset_state(reset_partial_state=True)
    return run / "checkpoints" / f"{STEPS:09d}"


@torch.no_grad()
def results(speaker: SpeakerModel, hint: int) -> list[Tensor]:
    """Masks, states and voices of fixed scenes."""
    inputs, _ = task(speaker).eval().inputs_of(batch(), cue_prob=0.0)
    predictions, voices = speaker(inputs._replace(hint=torch.full_like(inputs.hint, hint)))
    return [predictions.masks[-1], voices.states, voices.spectra]


def differ(first: list[Tensor], second: list[Tensor]) -> bool:
    return not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@torch.no_grad()
def loss_of(speaker: SpeakerModel, label: str) -> float:
    """Loss of fixed scenes whose targets have a label."""
    scenes = {**batch(), "labels": [(label,)] * 2}
    torch.manual_seed(0)
    speaker_task = task(speaker, hint_prob=1.0)
    return float(speaker_task.training_step(scenes, 0.5, [], 0).loss)


def test_old_classes_stay_the_same_to_the_bit(
    clips: Manifest, trained: Path, first: Path, tmp_path: Path
) -> None:
    """Two additions in a row; averaged weights stay the same, too."""
    source, statistics = load_speaker(str(trained))
    second = add(tmp_path / "second", clips, first, "guide")
    learned = {"singer": load_speaker(str(first))[0], "guide": load_speaker(str(second))[0]}
    assert load_speaker(str(second))[1] == statistics
    assert learned["guide"].config.classes == ("adult", "child", "singer", "guide")
    before = source
    for number, (label, after) in enumerate(learned.items(), 3):
        averaged, _ = load_speaker(str({"singer": first, "guide": second}[label] / "average"))
        for hint in range(number):
            assert not differ(results(before, hint), results(after, hint))
            assert not differ(results(before, hint), results(averaged, hint))
        assert differ(results(before, 0), results(after, number))
        rows, weights = after.hint_embed.weight, after.state_dict()
        assert not torch.equal(rows[0], rows[number])
        for name, value in before.state_dict().items():
            assert torch.equal(value, weights[name][:number] if "hint" in name else weights[name])
        assert loss_of(after, label) < loss_of(before, label)
        before = after


def test_all_else_learns_where_it_is_not_frozen(
    clips: Manifest, trained: Path, tmp_path: Path
) -> None:
    changes = {"model": {"freeze": "none"}, "loop": {"steps": 1}}
    main(words(tmp_path / "run", clips, trained, "singer", **changes))
    after, _ = load_speaker(str(tmp_path / "run" / "checkpoints" / "000000001"))
    before, _ = load_speaker(str(trained))
    assert not torch.equal(after.slot_pos.weight, before.slot_pos.weight)
    assert len(after.hint_embed.weight) == 4


def test_it_goes_on_to_the_bit(clips: Manifest, trained: Path, first: Path, tmp_path: Path) -> None:
    assert "hint_embed.added" in read_tensors(first / "model.safetensors", "")
    shutil.copytree(first.parents[1], tmp_path / "other")
    other = tmp_path / "other" / "checkpoints" / first.name
    shutil.rmtree(other)
    main([*words(tmp_path / "other", clips, trained, "singer"), "--resume", "auto"])
    for name in ("model.safetensors", "trainer.safetensors"):
        assert (other / name).read_bytes() == (first / name).read_bytes()


def test_what_it_refuses(clips: Manifest, trained: Path, tmp_path: Path) -> None:
    def refused(message: str, start: Path | None, *names: str, **changes: Any) -> None:
        with pytest.raises(UsageError, match=message):
            main(words(tmp_path / "refused", clips, start, *names, **changes))
        AcceleratorState._reset_state(reset_partial_state=True)

    refused("has the class 'child' already", trained, "singer", "child")
    refused("name it in model.init_from", None, "singer")
    refused("leaves nothing to learn", trained)
    refused("needs a name of its own", trained, "")
    refused("needs a name of its own", trained, "singer", "singer")
    refused(r"classes \['a', 'a'\]: each needs", trained, "b", model={"classes": ["a", "a"]})
    refused("train_encoder to frozen", trained, "singer", model={"train_encoder": "all"})
    refused("hint_prob 0", trained, "singer", loss={"hint_prob": 0.0})
    refused("no clip of .* counts as 'dancer'", trained, "singer", "dancer")
    refused("with no class before it .adult, child, twin.", trained, "twin")
