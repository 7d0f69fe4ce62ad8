"""`tools/gpu_run.sh` on the CPU: what comes back, and that a second call begins where it can.

Run by `.ci/run`: it starts a dozen programs.
"""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load, load_file

from cavmae.finetune.separation.model import SoundSeparator
from tests.datasets.mixtures.test_sound_mixer import syllables

ROOT = Path(__file__).parents[2]
BYTES, FILES = 16 << 20, 8  # that a borrowed machine gives back
RECIPE = {
    "data": {"batch_size": 2},
    "model": {"separator": {"name": "film-unet", "width": 4}, "width": 16},
    "loop": {"log_every": 1},
}
SPEAKER_RECIPE = {
    "compose": {"off_screen_prob": 0.0, "all_off_screen_prob": 0.0},
    "model": {
        "slots": 4, "width": 32, "heads": 2, "query_layers": 1, "slot_layers": 1, "mask_width": 16,
        "key_frames": 2, "motion_height": 112, "motion_width": 112,
        "motion": {"name": "conv", "width": 8, "depth": 1}, "head_size": 16,
        "head_motion": {"name": "conv", "width": 4, "depth": 1},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repository's root as far as the script needs it, with recordings beside it."""
    if not os.environ.get("CAVMAE_CLUSTER"):
        pytest.skip("takes a minute: set CAVMAE_CLUSTER=1, as .ci/run does")
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "root" / ".gpu").mkdir(parents=True)
    (folder / "root" / ".typing").symlink_to(ROOT / ".typing")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    with tarfile.open(folder / "root" / ".gpu" / "sound.tar", "w") as archive:
        for number in range(8):
            part = "valid" if number < 4 else "train"
            add(archive, f"speech/{part}/s{number}-0.wav", 90 + 20 * number, number)
        add(archive, "noise/hum/n0.wav", 50, 9)
    return folder


def add(archive: tarfile.TarFile, name: str, pitch: float, seed: int) -> None:
    """Adds a recording of 5 s."""
    file = io.BytesIO()
    soundfile.write(file, syllables(pitch, 5.0, seed), 16_000, format="WAV")
    info = tarfile.TarInfo(name)
    info.size = file.tell()
    archive.addfile(info, io.BytesIO(file.getvalue()))


def call(work: Path, out: str, **variables: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    environment = {
        "DEVICE": "cpu", "SIZE": str(work / "recipe.yaml"), "BATCH": "2", "TOGETHER": "2",
        "STEPS": "6", "BENCH_SECONDS": "200", "G": str(work / "unpacked"), "OUT": str(work / out),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(ROOT / "tools" / "gpu_run.sh"), "400"], cwd=work / "root", check=False,
        env={**os.environ, **environment, **variables}, capture_output=True, text=True,
    )  # fmt: skip
    return work / out, done


def test_what_comes_back_and_a_second_call(work: Path, tmp_path: Path) -> None:
    out, done = call(work, "first")
    messages = done.stdout + done.stderr
    assert done.returncode == 0, messages
    files = {path.name: path for path in out.iterdir()}
    assert {
        "machine.txt", "rates.md", "train.log", "metrics.jsonl", "config.yaml", "model.json",
        "half.safetensors.00",
    } == set(files), messages  # fmt: skip
    assert len(files) <= FILES and all(p.stat().st_size <= BYTES for p in files.values())
    assert "recipe.yaml, eager" in files["rates.md"].read_text()
    assert torch.__version__ in files["machine.txt"].read_text()
    assert yaml.safe_load(files["config.yaml"].read_text())["loop"]["steps"] == 6
    assert '"step": 6' in files["metrics.jsonl"].read_text()
    assert "step 6 of 6" in files["train.log"].read_text()
    half = load(files["half.safetensors.00"].read_bytes())
    last = work / "unpacked" / "run" / "checkpoints" / "000000006"
    average = last / "average" / "model.safetensors"
    weights = load_file(average if average.exists() else last / "model.safetensors")
    assert half.keys() == weights.keys()
    assert all(half[name].equal(w.half() if w.is_floating_point() else w)
               for name, w in weights.items())  # fmt: skip
    (tmp_path / "config.json").write_bytes(files["model.json"].read_bytes())
    (tmp_path / "model.safetensors").write_bytes(files["half.safetensors.00"].read_bytes())
    assert isinstance(SoundSeparator.from_pretrained(tmp_path), SoundSeparator)

    # Archives that are not there cannot be unpacked, nor recordings decoded, a second time.
    (work / "root" / ".gpu" / "sound.tar").unlink()
    before = {p: p.stat().st_mtime_ns for p in (work / "unpacked" / "cache").rglob("*")}
    again, done = call(work, "second", STEPS="4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (again / "rates.md").read_bytes() == files["rates.md"].read_bytes()
    assert before == {p: p.stat().st_mtime_ns for p in (work / "unpacked" / "cache").rglob("*")}
    assert "step 4 of 4" in (again / "train.log").read_text()


def test_a_speaker_model_from_talkers_and_that_separator(work: Path) -> None:
    """After the separator of the test above; talkers are rendered beside what there is to do."""
    (work / "speaker.yaml").write_text(yaml.safe_dump(SPEAKER_RECIPE))
    out, done = call(
        work, "speaker", STAGES="talkers speakers", TALKERS="8", VOICES="train", SCENES="2",
        SPEAKER=str(work / "speaker.yaml"), SPEAKER_STEPS="2", ENCODER_SECONDS="200",
        ENCODER_MORE="--data.batch-size 2 --loop.steps 2",
    )  # fmt: skip
    logs = "".join(path.read_text() for path in out.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert "8 samples" in done.stdout + (work / "unpacked" / "talkers.log").read_text()
    last = work / "unpacked" / "speaker" / "checkpoints" / "000000002" / "average"
    weights = load_file(last / "model.safetensors")
    half = load((out / "speaker-half.safetensors.00").read_bytes())
    assert half.keys() == weights.keys()
    sound = load_file(work / "unpacked" / "run" / "checkpoints" / "000000004" / "model.safetensors")
    for name, value in sound.items():  # frozen
        assert f"sound.{name}" in weights and weights[f"sound.{name}"].shape == value.shape
    assert len([*out.iterdir()]) <= FILES


def test_speakers_without_what_they_are_made_of(work: Path) -> None:
    _, done = call(work, "none", STAGES="speakers", G=str(work / "empty"))
    assert done.returncode == 1
    assert "speakers: run the stages train and talkers first." in done.stderr


def test_a_training_that_fails_is_a_failure(work: Path) -> None:
    _, done = call(work, "failed", MORE="--loop.precision fp16")
    assert done.returncode == 1
    assert "Nothing was trained." in done.stderr


def test_a_stage_that_does_not_exist_is_refused(work: Path) -> None:
    out, done = call(work, "refused", STAGES="train sing")
    assert done.returncode == 2
    assert "STAGES: there is no stage sing." in done.stderr
    assert not out.exists()
