"""`cavmae doctor`: a sound installation, and broken ones."""

import configparser
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest

from cavmae.tools.diagnosis import machine, media
from cavmae.tools.diagnosis.packages import EXTRAS
from cavmae.tools.doctor import main

ROOT = Path(__file__).parents[2]


def test_this_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["problems"] == []
    wanted = [
        re.split(r"[\[>=<; ]", line)[0]
        for line in importlib.metadata.requires("cavmae") or ()
        if "extra ==" not in line
    ]
    assert "torch" in wanted
    assert [package["name"] for package in record["packages"]] == wanted
    assert all(package["usable"] for package in record["packages"])
    assert {state["name"] for state in record["decoders"]} >= {"h264", "hevc", "vp9", "av1"}
    assert record["ffmpeg"]["ffmpeg"] == av.ffmpeg_version_info
    assert record["cores"] == len(os.sched_getaffinity(0))
    assert 0 < record["free_memory_bytes"] <= record["memory_bytes"]
    folders = {disk["use"]: Path(disk["folder"]) for disk in record["disks"]}
    assert folders["working folder"] == Path.cwd()
    assert main([]) == 0
    text = capsys.readouterr().out
    for part in (*wanted, "libx264", "GiB", *EXTRAS, "No problems"):
        assert part in text, part


def test_extras_are_those_of_the_project() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert set(EXTRAS) == {*parser["options.extras_require"]} - {"test", "docs"}


def test_limits_of_the_cgroups_around_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "fs" / "slurm" / "job_1"
    (job / "step_0").mkdir(parents=True)
    (job / "cpu.max").write_text("150000 100000\n")
    (job / "step_0" / "cpu.max").write_text("max 100000\n")
    (job / "memory.max").write_text("1000000\n")
    (job / "memory.current").write_text("900000\n")
    (tmp_path / "own").write_text("1:name=x:/other\n0::/slurm/job_1/step_0\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    assert machine.core_quota() == 1.5
    assert machine.memory_bytes() == (1_000_000, 100_000)
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "none")
    assert machine.core_quota() is None


def diagnosed(folder: Path, *words: str) -> tuple[int, str]:
    """Runs the command with the modules and metadata of a folder before the installed ones."""
    done = subprocess.run(
        [sys.executable, "-m", "cavmae.tools.cli", "doctor", *words],
        env=os.environ | {"PYTHONPATH": str(folder)}, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_a_broken_installation(tmp_path: Path) -> None:
    info = tmp_path / "cavmae-0.2.0.dist-info"
    info.mkdir()
    requirements = ["numpy>=999", "no-such-package>=1.5", 'skia-python>=1; extra == "talkers"',
                    'no-ray>=2; extra == "ray"', 'pesq; python_version < "3"']  # fmt: skip
    head = "Metadata-Version: 2.1\nName: cavmae\nVersion: 0.2.0\n"
    (info / "METADATA").write_text(head + "".join(f"Requires-Dist: {r}\n" for r in requirements))
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: no such file')")
    (tmp_path / "skia.py").write_text("raise ImportError('libEGL.so.1: no such file')")
    code, text = diagnosed(tmp_path, "--json")
    assert code == 1
    record: dict[str, Any] = json.loads(text)
    problems = "\n".join(record["problems"])
    for part in ("numpy", "is not >=999", "no-such-package is not installed: pip install 'no-such-"
                 "package>=1.5'", "torch cannot be loaded (libcudart.so.13"):  # fmt: skip
        assert part in problems, part
    assert "pesq" not in problems
    extras = {extra["name"]: extra for extra in record["extras"]}
    assert extras["ray"]["problems"] == ["no-ray is not installed"]
    assert extras["ray"]["remedy"] == "pip install 'cavmae[ray]'"
    assert "libEGL.so.1" in extras["talkers"]["problems"][0]
    assert "apt install libegl1" in extras["talkers"]["problems"][0]
    assert extras["http"]["problems"] == []


def test_an_ffmpeg_without_an_encoder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = av.Codec

    def without_x264(name: str, mode: str) -> Any:
        return codec("no-such-codec" if name == "libx264" else name, mode)

    monkeypatch.setattr(media.av, "Codec", without_x264)
    assert main([]) == 1
    text = capsys.readouterr().out
    assert "libx264 MISSING (videos of results)" in text
    assert "FFmpeg in PyAV has no encoder libx264" in text
