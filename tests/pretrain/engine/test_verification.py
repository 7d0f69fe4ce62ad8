"""A model's files are what they were when they were written, wherever one is loaded."""

import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file

from cavmae.common.cli import run as run_command
from cavmae.common.errors import CavmaeError
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.engine import checkpoints, trainer_state
from cavmae.pretrain.engine.model_files import (
    AVERAGE,
    COMPLETE,
    CONFIG,
    PREPROCESSING,
    WEIGHTS,
    verify,
)
from cavmae.pretrain.factory import load_model, load_named_weights, read_preprocessing
from cavmae.pretrain.model import CAVMAE
from cavmae.tools import convert, export

SHAPE = CAVMAEConfig(
    image_height=32, image_width=48, audio_frames=64, width=24, heads=2, depth=1,
    decoder_width=16, decoder_heads=2, decoder_depth=1,
)  # fmt: skip
STATISTICS = {"fbank_mean": -6.0, "fbank_std": 4.0}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with averaged weights, written as a run writes it."""
    torch.manual_seed(0)
    model = CAVMAE(SHAPE)
    weights = model.state_dict()
    position = {"epoch": 0, "samples": 3, "broken": 0}
    rank = {
        "loader": {"signature": {}, "turn": 0, "positions": [position]},
        "random": trainer_state.rng_state(),
    }
    trainer = {
        "step": 1, "samples": 2, "nonfinite": {"skipped": 0, "in_row": 0}, "averages": 1,
        "groups": [{"lr": 0.1, "params": ["norm.weight"]}], "scaler": None, "ranks": [rank],
    }  # fmt: skip
    run = tmp_path_factory.mktemp("run")
    checkpoints.save(
        run, 1,
        checkpoints.Checkpoint(
            weights, model.config_values(), STATISTICS, weights, {"a": torch.zeros(3)}, trainer, {}
        ),
        2,
    )  # fmt: skip
    return checkpoints.checkpoint_folder(run, 1)


@pytest.fixture
def copy(tmp_path: Path, intact: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / intact.name))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    path.write_bytes(data)


def refused(folder: Path | str, *parts: str, work: Callable[[str], Any] = load_model) -> str:
    with pytest.raises(CavmaeError) as caught:
        work(str(folder))
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text
    return text


def test_a_sound_one_is_loaded(copy: Path) -> None:
    verify(copy)
    assert load_model(str(copy)).config == SHAPE
    assert load_model(str(copy / AVERAGE)).config == SHAPE
    assert checkpoints.load(copy).trainer["step"] == 1
    (copy / "notes.txt").write_text("what is never read may lie there")
    (copy / "trainer.safetensors").unlink()  # a model may be copied without its training
    assert load_model(str(copy)).config == SHAPE


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, PREPROCESSING])
@pytest.mark.parametrize("inside", ["", AVERAGE])
def test_one_bit(copy: Path, name: str, inside: str) -> None:
    path = copy / inside / name
    whole = path.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        flip(path, place)
        refused(copy / inside, f"{path} was altered", "fetch a sound copy")
        path.write_bytes(whole)
    path.write_bytes(whole[: len(whole) // 2])
    refused(copy / inside, f"{path} was altered")
    path.unlink()
    refused(copy / inside, f"{path} is missing")


def test_one_bit_of_a_file_that_is_named_by_itself(copy: Path) -> None:
    flip(copy / WEIGHTS, -5)
    refused(copy / WEIGHTS, f"{copy / WEIGHTS} was altered", work=load_named_weights)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda listing: {}, "field config.json is missing"),
        (lambda listing: [], "a list where an object is expected"),
        (lambda listing: {**listing, "../../x": listing[CONFIG]}, "'../../x' is no file"),
        (lambda listing: {**listing, WEIGHTS: None}, "field model.safetensors is a NoneType"),
        (lambda listing: {**listing, CONFIG: {"bytes": True, "sha256": "0"}}, "field bytes is"),
        (lambda listing: {**listing, CONFIG: {"bytes": 1, "sha256": "0"}}, "no size and SHA-256"),
        (
            lambda listing: {k: v for k, v in listing.items() if k != PREPROCESSING},
            f"does not name {PREPROCESSING}, which is there",
        ),
        (
            lambda listing: {k: v for k, v in listing.items() if not k.startswith(AVERAGE)},
            f"does not name {AVERAGE}/",
        ),
        (
            lambda listing: {k: v for k, v in listing.items() if k != "trainer.json"},
            "does not name trainer.json, which is there",
        ),
    ],
)  # fmt: skip
def test_a_complete_that_vouches_for_less_or_more(
    copy: Path, change: Callable[[Any], Any], reason: str
) -> None:
    path = copy / COMPLETE
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    for work in (load_model, lambda name: verify(Path(name))):
        refused(copy, str(path), reason, work=work)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"\xff", b'{"a": NaN}', b"1" * 9999]
)
@pytest.mark.parametrize("name", [COMPLETE, CONFIG, PREPROCESSING])
def test_json_that_is_none(copy: Path, name: str, content: bytes) -> None:
    """Without hashes, too: COMPLETE is away then."""
    (copy / name).write_bytes(content)
    if name != COMPLETE:
        (copy / COMPLETE).unlink()
    refused(copy, name, work=read_preprocessing if name == PREPROCESSING else load_model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": "24"}, "field config.width is a str"),
        ({"width": True}, "field config.width is a bool"),
        ({"width": 10**9}, "width 1000000000 is not from"),
        ({"heads": 0}, "heads is 0: size custom needs width, heads"),
        ({"depth": 10**6}, "depth 1000000 is not from"),
        ({"depth": -1}, "depth -1 is not from"),
        ({"image_height": [32]}, "field config.image_height is a list"),
        ({"image_height": 4096, "image_width": 4096, "patch": 1}, "too many"),
        ({"decoder": "none"}, "config.decoder is none of self, cross"),
        ({"colour": 1}, "config has the unknown field colour"),
        ({"width": 8192, "depth": 64, "heads": 64}, "not those of its configuration"),
    ],
)  # fmt: skip
def test_configurations_that_make_no_model(copy: Path, change: dict[str, Any], reason: str) -> None:
    """They fill no memory: a refused one takes a moment."""
    (copy / COMPLETE).unlink()
    config = json.loads((copy / CONFIG).read_text())
    config.update(change)
    (copy / CONFIG).write_text(json.dumps(config))
    refused(copy, reason)


def test_weights_that_nobody_vouches_for_are_finite_numbers(copy: Path) -> None:
    (copy / COMPLETE).unlink()
    assert load_model(str(copy)).config == SHAPE
    weights = load_file(str(copy / WEIGHTS))
    for value in (math.nan, math.inf):
        weights["norm.weight"][3] = value
        save_file(weights, str(copy / WEIGHTS))
        refused(copy, f"{copy / WEIGHTS} is damaged, norm.weight is not finite")
        refused(copy / WEIGHTS, "norm.weight is not finite", work=load_named_weights)


def test_hundreds_of_damaged_files_of_weights(copy: Path, tmp_path: Path) -> None:
    """As no COMPLETE vouches for them: an error that names the file, or finite weights."""
    rng = random.Random(0)
    torch.save(CAVMAE(SHAPE).state_dict(), tmp_path / "a.pth")
    for source in (copy / WEIGHTS, tmp_path / "a.pth"):
        whole = source.read_bytes()
        for number in range(60):
            data = bytearray(whole)
            if number % 3 == 0:
                del data[rng.randrange(len(data)) :]
            else:
                for _ in range(20):
                    # Half of them where names and shapes are.
                    reach = 2000 if number % 2 else len(data)
                    data[rng.randrange(reach)] = rng.randrange(256)
            path = tmp_path / f"{number}{source.suffix}"
            path.write_bytes(data)
            try:
                weights = load_named_weights(str(path))[1]
            except CavmaeError as error:
                assert "\n" not in str(error)
            else:
                assert all(torch.isfinite(value).all() for value in weights.values())
            path.unlink()


def test_what_export_and_convert_write_is_verified(copy: Path, tmp_path: Path) -> None:
    """Also that they do not take what was altered."""
    exported, published, ours = (tmp_path / name for name in ("exported", "a.pth", "ours"))
    assert run_command(export.main, [str(copy), "--out", str(exported)]) == 0
    assert run_command(convert.main, [str(exported), "--out", str(published)]) == 0
    shape = ["--heads", "2", "--decoder-heads", "2", "--image-height", "32", "--image-width", "48"]
    assert run_command(convert.main, [str(published), "--out", str(ours), *shape]) == 0
    (exported / "README.md").write_text("A card may be written anew.")
    for folder in (exported, ours):
        assert load_model(str(folder)).config == SHAPE
        flip(folder / WEIGHTS, -9)
        refused(folder, f"{folder / WEIGHTS} was altered")
        again = tmp_path / "again.pth"
        assert run_command(convert.main, [str(folder), "--out", str(again)]) == 1
        assert not again.exists()
    flip(copy / WEIGHTS, -9)
    assert run_command(export.main, [str(copy), "--out", str(tmp_path / "again")]) == 1
    assert not (tmp_path / "again").exists()


def test_weights_saved_over_others_are_not_called_altered(copy: Path) -> None:
    CAVMAE(SHAPE).save_pretrained(copy)
    assert load_model(str(copy)).config == SHAPE


def test_a_model_of_the_hub(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def download(name: str, file: str, **options: Any) -> str:
        fetched.append(file)
        if not (copy / file).exists():
            raise EntryNotFoundError("no such file")
        return str(copy / file)

    monkeypatch.setattr("cavmae.pretrain.engine.hub.hf_hub_download", download)
    assert load_model("me/mine").config == SHAPE
    assert set(fetched) == {WEIGHTS, CONFIG, PREPROCESSING, COMPLETE}
    flip(copy / WEIGHTS, -9)
    refused("me/mine", f"{copy / WEIGHTS} was altered")
    (copy / COMPLETE).unlink()
    (copy / PREPROCESSING).unlink()
    assert load_model("me/mine").config == SHAPE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 7}, "its schema is 7"),
        ({"schema": "1"}, "field schema is a str"),
        ({"step": None}, "field step is a NoneType"),
        ({"nonfinite": {}}, "field skipped is missing"),
        ({"groups": [{"params": [1]}]}, "params"),
        ({"ranks": []}, "field ranks is empty"),
        ({"ranks": [{"random": {}, "loader": {"signature": {}, "turn": 0, "positions": [[]]}}]},
         "position is a list"),
    ],
)  # fmt: skip
def test_trainer_states_of_another_kind(copy: Path, change: dict[str, Any], reason: str) -> None:
    trainer = json.loads((copy / "trainer.json").read_text())
    (copy / "trainer.json").write_text(json.dumps({**trainer, **change}))
    refused(copy, reason, work=lambda name: checkpoints.load(Path(name)))


@pytest.mark.parametrize("key", ["torch", "numpy", "python"])
@pytest.mark.parametrize("value", [None, "", "AAAA", [], [1, 2, 3], {}, 5])
def test_random_states_that_are_none(key: str, value: Any) -> None:
    before = trainer_state.rng_state()
    try:
        with pytest.raises(CavmaeError, match="random state is damaged"):
            trainer_state.set_rng_state({**before, key: value})
    finally:
        trainer_state.set_rng_state(before)


def test_loaded_weights_do_not_hang_on_the_file(tmp_path: Path) -> None:
    """A model is saved where it came from; in half precision, too, which is widened."""
    torch.manual_seed(0)
    model = CAVMAE(SHAPE)
    model.save_pretrained(tmp_path)
    loaded = CAVMAE.from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.half().save_pretrained(tmp_path)
    zeros = CAVMAE.from_pretrained(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"")
    torch.manual_seed(0)
    for expected, mine, zero in zip(
        CAVMAE(SHAPE).parameters(), loaded.parameters(), zeros.parameters(), strict=True
    ):
        assert torch.equal(mine, expected)
        assert mine.requires_grad == expected.requires_grad
        assert zero.dtype == expected.dtype
        assert not zero.any()


class Windowed(CAVMAE):
    """With a constant that the weights do not hold and that begins as an empty tensor."""

    def __init__(self, config: CAVMAEConfig):
        super().__init__(config)
        self.register_buffer("window", torch.empty(4).fill_(2.0), persistent=False)


def test_constants_that_begin_empty_are_computed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Windowed(SHAPE)
    model.save_pretrained(tmp_path)
    loaded = Windowed.from_pretrained(tmp_path)
    assert loaded.window.tolist() == [2.0] * 4
    assert torch.equal(loaded.state_dict()["norm.weight"], model.state_dict()["norm.weight"])


LOADING = """
import sys
from cavmae.pretrain.model import CAVMAE
from cavmae.tools.benchmarks.table import peak_mb

before = peak_mb()
model = CAVMAE.from_pretrained(sys.argv[1])
print(peak_mb() - before, sum(p.nbytes for p in model.parameters()) / 1e6)
"""


def test_loading_takes_the_memory_of_the_weights_once(tmp_path: Path) -> None:
    large = CAVMAEConfig(
        image_height=32, image_width=48, audio_frames=64, width=768, heads=2, depth=6,
        decoder_width=16, decoder_heads=2, decoder_depth=1,
    )  # fmt: skip
    CAVMAE(large).save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(tmp_path)], stdout=subprocess.PIPE, check=True
    )
    taken, size = map(float, done.stdout.split())
    assert size > 200
    assert taken < 1.3 * size
