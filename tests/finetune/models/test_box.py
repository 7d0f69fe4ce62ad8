"""Models in the box: names, hashes, the default, and commands that take them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.finetune.events.config import EventConfig
from cavmae.finetune.events.model import EventClassifier
from cavmae.finetune.inference import EventPredictor, Separator
from cavmae.finetune.models import box
from cavmae.finetune.models.box import boxed_models, default_speaker_model, model_source
from cavmae.finetune.separation.weights import load_sound
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.pretrain.config import EncoderConfig
from cavmae.pretrain.engine import hub
from cavmae.pretrain.engine.model_files import verify_model
from cavmae.tools import evaluate
from cavmae.tools.export import main as export_main
from tests.finetune.events.event_clips import ENCODER
from tests.finetune.models.boxes import EXPECT, TRAINED_ON, export_model
from tests.finetune.speaker.scenes import model

BOX_LIMIT_BYTES = 24e6  # of all models of a release, each of which everybody downloads


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A speaker model and an event classifier."""
    folder = tmp_path_factory.mktemp("exported")
    export_model(model(), folder / "tiny", folder / "a")
    events = EventClassifier(
        EventConfig(EncoderConfig(**ENCODER), ("dog",), modalities="audio_only")
    )
    export_model(events, folder / "dogs", folder / "b")
    return folder


@pytest.fixture
def boxed(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A box with those models, and an empty working folder."""
    folder = tmp_path / "box"
    for name in ("tiny", "dogs"):
        shutil.copytree(exported / name, folder / name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(box, "BOX", folder)
    return folder


def test_a_model_is_loaded_without_the_compiler() -> None:
    """Importing it takes longer than all the rest of a start."""
    code = (
        "import sys\n"
        "from cavmae.finetune.inference import Separator\n"
        "Separator.from_pretrained('talkers-small')\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_models_of_this_release() -> None:
    total = 0
    for found in boxed_models():
        total += sum(file.stat().st_size for file in found.folder.iterdir())
        assert found.about.trained_on
        assert found.about.expect
        assert found.about.license
        assert (found.folder / "README.md").is_file()
        verify_model(found.folder)
    assert total <= BOX_LIMIT_BYTES


def test_names_and_facts(boxed: Path) -> None:
    assert [(m.name, m.model_type) for m in boxed_models()] == [
        ("dogs", "events"), ("tiny", "speaker"),
    ]  # fmt: skip
    about = boxed_models()[1].about
    assert (about.trained_on, about.expect, about.license) == (TRAINED_ON, EXPECT, "cc-by-4.0")
    assert about.sentence("tiny") == f"tiny was trained on {TRAINED_ON}; expect {EXPECT}."


def test_a_path_comes_before_the_box_and_the_box_before_the_hub(boxed: Path) -> None:
    assert model_source("tiny") == str(boxed / "tiny")
    for other in ("./tiny", "me/tiny", str(boxed), "tiny/", "..", ".", "", "models"):
        assert model_source(other) == other
    Path("tiny").mkdir()  # results or clips, and no model
    assert model_source("tiny") == str(boxed / "tiny")
    shutil.copy(boxed / "tiny" / "config.json", "tiny")
    with pytest.raises(UsageError, match=r"ambiguous.*write \./tiny"):
        model_source("tiny")


def test_the_only_speaker_model_needs_no_name(boxed: Path) -> None:
    assert default_speaker_model() == "tiny"
    separator = Separator.from_pretrained(device="cpu")
    assert separator.about.trained_on == TRAINED_ON
    shutil.copytree(boxed / "tiny", boxed / "other")
    with pytest.raises(UsageError, match="name one of other, tiny"):
        default_speaker_model()
    shutil.rmtree(boxed / "other")
    shutil.rmtree(boxed / "tiny")
    with pytest.raises(UsageError, match=r"without a speaker model: name one with --model"):
        default_speaker_model()


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessing.json", "config.json"])
def test_an_altered_file_is_refused(boxed: Path, name: str) -> None:
    load_speaker("tiny")
    path = boxed / "tiny" / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CavmaeError, match=f"{name}.*was altered|{name} is damaged"):
        load_speaker("tiny")


def test_a_model_without_hashes_is_refused(boxed: Path) -> None:
    (boxed / "tiny" / "COMPLETE").unlink()
    for work in (boxed_models, default_speaker_model, lambda: load_speaker("tiny")):
        with pytest.raises(CavmaeError, match=r"COMPLETE is missing: install cavmae again"):
            work()


def test_commands_take_names_of_the_box(boxed: Path) -> None:
    predictor = EventPredictor.from_pretrained("dogs", "cpu")
    assert predictor.config.classes == ("dog",)
    assert export_main(["tiny", "--out", "again"]) == 0
    weights = (Path("again") / "model.safetensors").read_bytes()
    assert weights == (boxed / "tiny" / "model.safetensors").read_bytes()
    about = json.loads((Path("again") / "config.json").read_text())["about"]
    assert about == {"trained_on": TRAINED_ON, "expect": EXPECT, "license": "cc-by-4.0"}
    with pytest.raises(UsageError, match="--cue is an option of models of the type 'speaker'"):
        evaluate.main(["shards", "--model", "dogs", "--cue", "box"])


def test_the_separator_of_a_speaker_model_is_taken_by_its_name(boxed: Path) -> None:
    speaker, _ = load_speaker("tiny")
    for name, value in load_sound("tiny").state_dict().items():
        assert torch.equal(value, speaker.sound.state_dict()[name]), name
    with pytest.raises(CavmaeError, match="of the type 'events', not 'sound-separator'"):
        load_sound("dogs")
    with pytest.raises(CavmaeError, match=r"\./none is no folder of weights"):
        load_sound("./none")


def test_a_name_that_is_nearly_one_of_the_box_asks_no_hub(
    boxed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(UsageError, match=r"no model tny: did you mean tiny, which is in the box\?"):
        model_source("tny")
    for name in ("./tny", "nothing", "/x/y", "../a", "a/b/c"):
        with pytest.raises(CavmaeError, match="no such folder, and names there are OWNER/NAME"):
            load_speaker(name)


def test_facts_do_not_outlive_training(boxed: Path, tmp_path: Path) -> None:
    trained, _ = load_speaker("tiny")
    trained.save_pretrained(tmp_path / "trained")
    assert "about" not in json.loads((tmp_path / "trained" / "config.json").read_text())


def test_weights_of_the_box_are_widened(boxed: Path) -> None:
    loaded, statistics = load_speaker("tiny")
    assert statistics.mean == -6.0
    for name, value in model().state_dict().items():
        own = loaded.state_dict()[name]
        assert own.dtype == value.dtype
        exact = value.ndim < 2 or not value.is_floating_point()
        torch.testing.assert_close(
            own, value, rtol=0 if exact else 2**-11, atol=0 if exact else 2**-25
        )
