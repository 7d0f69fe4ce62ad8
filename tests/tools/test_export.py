"""`cavmae export`: what goes with the weights, and what a card says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import sha256_of
from cavmae.finetune.events.config import EventConfig
from cavmae.finetune.events.factory import load_events
from cavmae.finetune.events.model import EventClassifier
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.separation.model import SoundSeparator
from cavmae.finetune.separators.settings import UNetOptions
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.pretrain.config import CAVMAEConfig, EncoderConfig
from cavmae.pretrain.factory import read_preprocessing
from cavmae.pretrain.model import CAVMAE
from cavmae.tools.export import main
from tests.finetune.events.event_clips import ENCODER
from tests.finetune.speaker.scenes import model
from tests.serving import hub

STATISTICS = {"fbank_mean": -6.0, "fbank_std": 4.0, "sample_rate": 16000}


def checkpoint(run: Path, trained: torch.nn.Module) -> Path:
    folder = run / "checkpoints" / "000000120"
    trained.save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessing.json").write_text(json.dumps(STATISTICS))
    (folder / "optimizer.pt").write_bytes(b"no part of a model")
    (run / "config.yaml").write_text(
        "data:\n  train: /home/somebody/clips\nmodel:\n  slots: 5\n  encoder: null\n"
    )
    return folder


def test_a_speaker_model_by_itself(tmp_path: Path) -> None:
    trained = model(classes=("child", "*a`b*"))
    measures = tmp_path / "measures"
    measures.mkdir()
    record = {"list": "/x/pairs.jsonl", "scenes": {"model": [1, 2, 3]},
              "summary": {"model": {"iou": 0.8125}, "frames_frozen": {"iou": 0.5}}}  # fmt: skip
    (measures / "measures.json").write_text(json.dumps(record))
    words = [str(checkpoint(tmp_path / "run", trained)), "--out", str(tmp_path / "mine"),
             "--measures", str(measures), "--name", "me/mine"]  # fmt: skip
    assert main(words) == 0
    names = {p.name for p in (tmp_path / "mine").iterdir()}
    assert names == {
        "model.safetensors", "config.json", "preprocessing.json", "COMPLETE", "README.md"
    }  # fmt: skip
    loaded, statistics = load_speaker(str(tmp_path / "mine"))
    assert statistics.mean == -6.0
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.library_name == "cavmae"
    for text in ("Step 120", "slots: 5", "train: clips", "`child`, ``*a`b*``\n\n##",
                 "| IoU | 0.812 | 0.500 |", "3 scenes of `pairs.jsonl`",
                 'from_pretrained("me/mine")', "consent"):  # fmt: skip
        assert text in card.content, text
    assert "/home" not in card.content
    with pytest.raises(UsageError, match="is there already"):
        main(words)


def test_what_a_card_quotes_stays_quoted(tmp_path: Path) -> None:
    measures = tmp_path / "measures"
    measures.mkdir()
    record = {"list": "pa`ir.jsonl", "scenes": {"model": []},
              "summary": {"a|<b>\n*c*": {"iou": 0.5}}}  # fmt: skip
    (measures / "measures.json").write_text(json.dumps(record))
    folder = checkpoint(tmp_path / "run", model())
    (tmp_path / "run" / "config.yaml").write_text("a: 1\n```\n<script>x</script>\n")
    words = [str(folder), "--out", str(tmp_path / "mine"), "--measures", str(measures), "--name",
             'my_*model*"$(x)']  # fmt: skip
    assert main(words) == 0
    text = (tmp_path / "mine" / "README.md").read_text()
    for part in ("````yaml\na: 1\n```\n<script>x</script>\n````", r"| | a\|\<b\>\\n\*c\* |",
                 "``pa`ir.jsonl``", r"# my\_\*model\*", r'from_pretrained("my_*model*\"$(x)")',
                 "--model 'my_*model*\"$(x)'"):  # fmt: skip
        assert part in text, part
    for other in ({"summary": []}, record | {"list": 3}, record | {"summary": {"a": {"iou": "x"}}}):
        (measures / "measures.json").write_text(json.dumps(other))
        with pytest.raises(CavmaeError, match=r"measures\.json"):
            main([*words[:2], str(tmp_path / "other"), *words[3:]])


def test_no_folder_of_the_training_machine_is_in_a_card(tmp_path: Path) -> None:
    """Neither of lists of data sets, nor of a configuration that is another program's."""
    folder = checkpoint(tmp_path / "run", model())
    (tmp_path / "run" / "config.yaml").write_text(
        "data:\n  train:\n  - /home/me/films\n  - path: /home/me/street\n    weight: 2.0\n"
        "  - s3://secret/clips\n  held_out: /home/me/other\n"
    )
    assert main([str(folder), "--out", str(tmp_path / "a" / "mine")]) == 0
    text = (tmp_path / "a" / "mine" / "README.md").read_text()
    for part in ("- films", "- path: street", "weight: 2.0", "- clips", "held_out: other"):
        assert part in text, part
    assert "/home" not in text and "secret" not in text
    (tmp_path / "config.yaml").write_text("password: x")  # two levels above an exported model
    assert main([str(tmp_path / "a" / "mine"), "--out", str(tmp_path / "again")]) == 0
    assert "password" not in (tmp_path / "again" / "README.md").read_text()


def test_an_encoder_by_itself(tmp_path: Path) -> None:
    config = CAVMAEConfig(
        image_height=32, image_width=48, audio_frames=64, width=24, heads=2, depth=1,
        decoder_width=16, decoder_heads=2, decoder_depth=1,
    )  # fmt: skip
    folder = checkpoint(tmp_path / "run", CAVMAE(config))
    assert main([str(folder), "--out", str(tmp_path / "enc")]) == 0
    text = (tmp_path / "enc" / "README.md").read_text()
    assert "CAVMAE.from_pretrained" in text
    assert "Not measured." in text
    assert CAVMAE.from_pretrained(tmp_path / "enc").config == config


def test_a_sound_separator_by_itself(tmp_path: Path) -> None:
    trained = SoundSeparator(SoundSeparatorConfig(UNetOptions(width=2), width=8))
    assert main([str(checkpoint(tmp_path / "run", trained)), "--out", str(tmp_path / "mine")]) == 0
    loaded = SoundSeparator.from_pretrained(tmp_path / "mine")
    assert loaded.config == trained.config
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert "--model.sound-from mine" in card.content


def event_checkpoint(run: Path) -> Path:
    classes = ("dog", "rain", "*a`b*")
    config = EventConfig(EncoderConfig(**ENCODER, frames=2), classes, modalities="multimodal")
    return checkpoint(run, EventClassifier(config))


def test_the_card_of_an_event_classifier_has_the_conditions_of_its_figures(tmp_path: Path) -> None:
    folder = event_checkpoint(tmp_path / "run")
    average = shutil.copytree(folder, folder / "average")
    record: dict[str, Any] = {
        "model": "/x/average",
        "figures": {
            name: {"value": value, "mode": "missing_video", "frames": "none",
                   "weights": "mean after epochs 2 to 5"}
            for name, value in (("mean_ap", 0.51239), ("auc", 0.7), ("d_prime", None),
                                ("accuracy", 0.25))
        },
        "classes": [{"name": "dog", "clips": 3}, {"name": "rain", "clips": 2},
                    {"name": "x", "clips": 0}],
    }  # fmt: skip
    measures = tmp_path / "measures"
    measures.mkdir()
    (measures / "events.json").write_text(json.dumps(record))
    words = [str(average), "--out", str(tmp_path / "mine"), "--measures", str(measures)]
    assert main(words) == 0
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    for text in (
        "Step 120, averaged weights.", "train: clips", "`dog`, `rain`, ``*a`b*``",
        "Windows of 0.64 s, 2 frames in one pass of 32x32 pixels; fine-tuned multimodal;",
        "On clips of 2 of the 3 classes, measured with `average`",
        "| | value | mode | frames | weights |",
        r"| mAP | 0.5124 | missing\_video | none | mean after epochs 2 to 5 |",
        "cavmae predict video.mp4 --model mine --out out", "other events",
    ):  # fmt: skip
        assert text in card.content, text
    assert card.data.tags == ["audio-visual", "audio-classification"]
    assert "Voices" not in card.content
    assert load_events(str(tmp_path / "mine")).config.classes == ("dog", "rain", "*a`b*")
    foreign = record | {"weights_sha256": "0" * 64}
    (measures / "events.json").write_text(json.dumps(foreign))
    with pytest.raises(CavmaeError, match=r"of other weights \(/x/average\) than .*measure these"):
        main([*words[:2], str(tmp_path / "other"), *words[3:]])
    own = sha256_of(average / "model.safetensors")
    (measures / "events.json").write_text(json.dumps(record | {"weights_sha256": own}))
    assert main([*words[:2], str(tmp_path / "measured"), *words[3:]]) == 0
    for other in ({"figures": {}}, {"timeline": []}, record | {"classes": [{"name": "dog"}]}):
        (measures / "events.json").write_text(json.dumps(other))
        with pytest.raises(CavmaeError, match=r"events\.json: .*measure again"):
            main([*words[:2], str(tmp_path / "other"), *words[3:]])


def test_a_pushed_classifier_predicts_from_the_hub(tmp_path: Path, video: Any) -> None:
    path = video(seconds=0.7, size=(48, 32))
    folder = event_checkpoint(tmp_path / "run")
    program = (
        "import os, shutil, sys\n"
        "from cavmae.common.cli import run\n"
        "from cavmae.tools import export, predict\n"
        "folder, video = sys.argv[1:]\n"
        "words = [folder, '--out', 'mine', '--name', 'me/mine', '--push']\n"
        "assert run(export.main, words) == 1\n"
        "shutil.rmtree('mine')\n"
        "os.environ['HF_TOKEN'] = 'letmein'\n"
        "assert run(export.main, words) == 0\n"
        "assert run(predict.main, [video, '--model', 'me/mine', '--out', 'out']) == 0"
    )
    with hub(tmp_path / "hub") as address:
        known = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder), str(path)], cwd=tmp_path,
            env=os.environ | known | {"HF_TOKEN": "wrong"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("me/mine could not be uploaded") == 1
    names = {file.name for file in (tmp_path / "hub" / "me" / "mine").iterdir()}
    assert names == {file.name for file in (tmp_path / "mine").iterdir()}
    assert (
        json.loads((tmp_path / "out" / "video" / "events.json").read_text())["model"] == "me/mine"
    )


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CavmaeError, match="is not a checkpoint"):
        main([str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(UsageError, match="needs the --name"):
        main([str(tmp_path), "--out", str(tmp_path / "out"), "--push"])
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "preprocessing.json"
    path.write_text(json.dumps(STATISTICS))
    asked = []

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        if name == "me/none":
            raise EntryNotFoundError("no such file")
        if name == "me/offline":
            raise LocalEntryNotFoundError("no network")
        return str(path)

    monkeypatch.setattr("cavmae.pretrain.factory.hf_hub_download", download)
    assert read_preprocessing("me/mine") == STATISTICS
    assert read_preprocessing("me/none") is None
    with pytest.raises(CavmaeError, match="could not be fetched"):
        read_preprocessing("me/offline")
    assert asked[0] == ("me/mine", "preprocessing.json")
    assert read_preprocessing(str(tmp_path)) == STATISTICS
