"""Training goes on where it was killed, and its losses are those of a run never interrupted."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cavmae.common.cli import run as run_command
from cavmae.datasets.format.manifest import Manifest
from cavmae.pretrain.engine import checkpoints
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.train import main
from tests.pretrain.engine.running import (
    finish,
    free_port,
    kill,
    launch,
    lines,
    run_ranks,
    trace,
    train,
    wait_for,
    words,
)

RESUME = ["--resume", "auto"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data_set: Manifest) -> dict[int, Path]:
    """Runs that were never interrupted, of one and of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    runs = {}
    for processes in (1, 2):
        runs[processes] = folder / f"of-{processes}"
        command = words(folder, runs[processes], data_set.folder)
        for code, stderr in finish(train(command, processes)):
            assert code == 0, stderr
    return runs


@pytest.fixture
def copy(tmp_path: Path, whole: dict[int, Path]) -> Path:
    """A copy of the run of one process, to be continued or spoilt."""
    return Path(shutil.copytree(whole[1], tmp_path / "run"))


def same_end(run: Path, other: Path) -> None:
    assert trace(run) == trace(other)
    ours, theirs = (checkpoints.complete_checkpoints(x)[-1] for x in (run, other))
    assert ours.name == theirs.name
    for name in ("model.safetensors", "trainer.safetensors", "average/model.safetensors"):
        a, b = load_file(str(ours / name)), load_file(str(theirs / name))
        assert a.keys() == b.keys()
        assert all(a[key].equal(b[key]) for key in a), name


def unfinished(run: Path) -> list[Path]:
    folder = run / "checkpoints"
    return [p for p in folder.iterdir() if p.suffix == ".tmp"] if folder.is_dir() else []


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_kill_in_a_save_and_between_saves(
    tmp_path: Path, data_set: Manifest, whole: dict[int, Path], processes: int
) -> None:
    run = tmp_path / "run"
    command = [*words(tmp_path, run, data_set.folder), *RESUME]
    # The second save is killed half-way, the third is not, a later step is killed.
    started = train(command, processes)
    wait_for(lambda: (run / "checkpoints" / "000000002").exists(), started)
    wait_for(lambda: bool(unfinished(run)), started)
    kill(started)
    newest = checkpoints.complete_checkpoints(run)[-1].name
    assert newest in ("000000002", "000000004")
    started = train(command, processes)
    wait_for(lambda: any(line["step"] == 5 for line in lines(run)), started)
    kill(started)
    results = finish(train(command, processes))
    for code, stderr in results:
        assert code == 0, stderr
    assert "Going on from" in results[0][1]
    assert not unfinished(run)
    same_end(run, whole[processes])


@pytest.mark.parametrize(
    ("processes", "number"),
    [(1, signal.SIGUSR1), pytest.param(2, signal.SIGTERM, marks=pytest.mark.long)],
)
def test_a_signal_saves_at_the_next_step(
    tmp_path: Path, data_set: Manifest, whole: dict[int, Path], processes: int, number: int
) -> None:
    run = tmp_path / "run"
    command = words(tmp_path, run, data_set.folder, loop={"save_every": 0})
    started = train(command, processes)
    wait_for(lambda: any(line["step"] == 3 for line in lines(run)), started)
    os.kill(started[-1].pid, number)  # one of them only
    results = finish(started)
    for code, stderr in results:
        assert code == 0, stderr
    assert f"by {signal.Signals(number).name}; the same command with --resume auto" in results[0][1]
    (saved,) = checkpoints.complete_checkpoints(run)
    assert 3 <= int(saved.name) <= 5
    assert CAVMAE.from_pretrained(saved).config.audio_size == (128, 96)
    for code, stderr in finish(train([*command, *RESUME], processes)):
        assert code == 0, stderr
    same_end(run, whole[processes])


def test_a_signal_for_the_whole_group_reaches_loader_workers_too(
    tmp_path: Path, data_set: Manifest
) -> None:
    run = tmp_path / "run"
    started = train(words(tmp_path, run, data_set.folder, data={"workers": 2}))
    wait_for(lambda: any(line["step"] == 2 for line in lines(run)), started)
    os.killpg(started[0].pid, signal.SIGTERM)
    ((code, stderr),) = finish(started)
    assert code == 0, stderr
    assert "by SIGTERM" in stderr
    assert int(checkpoints.complete_checkpoints(run)[-1].name) <= 5


def test_a_disk_that_is_full_leaves_the_checkpoint_before(
    tmp_path: Path, data_set: Manifest, whole: dict[int, Path], copy: Path
) -> None:
    shutil.rmtree(copy / "checkpoints" / "000000008")
    before = checkpoints.complete_checkpoints(copy)[-1]

    command = [*words(tmp_path, copy, data_set.folder), *RESUME]
    ((code, stderr),) = finish(train(command, file_limit=1_000_000))
    assert code == 1
    assert "could not be written (" in stderr
    assert f"{before} is intact" in stderr
    assert "Traceback" not in stderr
    assert checkpoints.complete_checkpoints(copy)[-1] == before
    assert not unfinished(copy)
    assert main(command) == 0
    same_end(copy, whole[1])


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_permission_lost(tmp_path: Path, data_set: Manifest, copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints" / "000000008")
    (copy / "checkpoints").chmod(0o500)
    command = [*words(tmp_path, copy, data_set.folder), *RESUME]
    assert run_command(main, command) == 1
    (copy / "checkpoints").chmod(0o700)
    assert run_command(main, command) == 0


def damaged(
    run: Path, folder: Path, data_set: Manifest, capsys: pytest.CaptureFixture[str], **changes: dict
) -> str:
    code = run_command(main, [*words(folder, run, data_set.folder, **changes), *RESUME])
    assert code == 1
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    return stderr


def test_a_checkpoint_that_is_not_what_it_was(
    tmp_path: Path,
    data_set: Manifest,
    whole: dict[int, Path],
    copy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    newest = checkpoints.complete_checkpoints(copy)[-1]
    for name in (
        "model.safetensors",
        "trainer.safetensors",
        "trainer.json",
        "config.json",
        "preprocessing.json",
    ):
        intact = (newest / name).read_bytes()
        spoilt = bytearray(intact)
        spoilt[len(intact) // 2] ^= 4
        (newest / name).write_bytes(spoilt)
        stderr = damaged(copy, tmp_path, data_set, capsys)
        assert f"{newest / name} was altered: move {newest} away" in stderr
        (newest / name).unlink()
        assert f"{newest / name} is missing" in damaged(copy, tmp_path, data_set, capsys)
        (newest / name).write_bytes(intact)
    stderr = damaged(copy, tmp_path, data_set, capsys, model={"size": "small"}, loop={"steps": 9})
    assert "is of a model whose width is 192, not 384: keep the settings" in stderr
    stderr = damaged(
        copy, tmp_path, data_set, capsys, model={"decoder": "cross"}, loop={"steps": 9}
    )
    assert 'is of a model whose decoder is "self", not "cross": keep' in stderr
    stderr = damaged(
        copy, tmp_path, data_set, capsys,
        objective={"learned_temperature": False, "aligned_weight": 0.5}, loop={"steps": 9},
    )  # fmt: skip
    assert "moved other parameters" in stderr
    # Moved away, as the message says, the one before it is used.
    shutil.move(newest, tmp_path)
    command = [*words(tmp_path, copy, data_set.folder), *RESUME]
    assert run_command(main, command) == 0
    same_end(copy, whole[1])


def test_an_incomplete_checkpoint_is_passed_over(
    tmp_path: Path,
    data_set: Manifest,
    whole: dict[int, Path],
    copy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    newest = checkpoints.complete_checkpoints(copy)[-1]
    (newest / "COMPLETE").unlink()
    assert run_command(main, [*words(tmp_path, copy, data_set.folder), *RESUME]) == 0
    assert f"{newest} is not complete and is passed over" in capsys.readouterr().err
    same_end(copy, whole[1])


def test_a_run_is_not_begun_over_another(
    tmp_path: Path,
    data_set: Manifest,
    whole: dict[int, Path],
    copy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = words(tmp_path, copy, data_set.folder)
    assert run_command(main, command) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert run_command(main, [*command, *RESUME]) == 0
    assert "is done: 8 steps" in capsys.readouterr().err
    assert trace(copy) == trace(whole[1])
    assert not list(copy.glob("config.until*"))
    # Its own configuration is loadable as it is.
    again = ["--config", str(copy / "config.yaml"), "--out", str(tmp_path / "again")]
    assert run_command(main, [*again, "--loop.steps", "2"]) == 0
    assert trace(tmp_path / "again")[0]["loss"] == trace(copy)[0]["loss"]


def test_another_number_of_processes_goes_on_with_the_rest_of_the_epoch(
    tmp_path: Path, data_set: Manifest, whole: dict[int, Path]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[2], run)
    command = [*words(tmp_path, run, data_set.folder, loop={"steps": 10}), *RESUME]
    ((code, stderr),) = finish(train(command))
    assert code == 0, stderr
    assert "is divided anew" in stderr and "beginning of epoch" not in stderr
    assert [line["step"] for line in lines(run)][-1] == 10


@pytest.mark.long
def test_epochs_end_with_their_samples_whatever_the_batches(
    tmp_path: Path, data_set: Manifest
) -> None:
    """24 clips, 2/3 of an epoch: four steps of two clips, then two of four."""
    run = tmp_path / "run"
    command = words(tmp_path, run, data_set.folder, loop={"steps": 0, "epochs": 2 / 3})
    ((code, stderr),) = finish(train(command))
    assert code == 0, stderr
    assert [line["step"] for line in lines(run)][-1] == 8
    for step in (6, 8):
        shutil.rmtree(run / "checkpoints" / f"{step:09d}")
    # A configuration of another name: that of the run stays what it was.
    ((code, stderr),) = finish(train([*command, *RESUME, "--data.batch_size", "4"]))
    assert code == 0, stderr
    resumed = [line for line in lines(run) if line["kind"] == "train"]
    assert [(line["step"], line["samples"]) for line in resumed][-2:] == [(5, 12), (6, 16)]
    rates = {line["samples"]: line["lr"] for line in resumed}
    assert rates[12] == pytest.approx(rates[8] + (rates[16] - rates[8]) / 2, rel=0.2)


def test_a_changed_setting_counts_in_every_process(
    tmp_path: Path, data_set: Manifest, whole: dict[int, Path]
) -> None:
    """A process that went on with the checkpoint's would drift away from the others."""
    run = tmp_path / "run"
    shutil.copytree(whole[2], run)
    command = words(tmp_path, run, data_set.folder, loop={"steps": 10, "max_bad_steps": 9})
    command += [*RESUME, "--optimizer.weight_decay", "0.5", "--optimizer.beta2", "0.5"]
    spread = tmp_path / "spread"
    check = (
        "import sys, torch; from cavmae.pretrain import train\n"
        "from cavmae.pretrain.engine import trainer_state as t\n"
        "before = t.set_trainer_state\n"
        "def put(module, optimizer, *rest):\n"
        "    before(module, optimizer, *rest)\n"
        f"    open({str(spread)!r} + str(torch.distributed.get_rank()), 'w').write(\n"
        "        repr([(g['weight_decay'], g['betas']) for g in optimizer.param_groups]))\n"
        "t.set_trainer_state = put\n"
        "train.main(sys.argv[1:])\n"
    )
    for code, stderr in finish(launch(["-c", check, *command], 2)):
        assert code == 0, stderr
    settings_of_ranks = [Path(f"{spread}{rank}").read_text() for rank in range(2)]
    assert settings_of_ranks[0] == settings_of_ranks[1]
    assert "0.5" in settings_of_ranks[0]


def test_a_shard_that_breaks_during_training_stops_all(tmp_path: Path, copied: Path) -> None:
    run = tmp_path / "run"
    started = train(words(tmp_path, run, copied, loop={"steps": 10_000, "evaluate_every": 0}), 2)
    wait_for(lambda: any(line["step"] == 3 for line in lines(run)), started)
    for path in sorted(copied.glob("*.tar"))[:2]:
        with path.open("r+b") as file:  # in place: it is open in a loader
            file.write(os.urandom(path.stat().st_size))
    results = finish(started)
    assert [code for code, _ in results] == [1, 1]
    assert all("Traceback" not in stderr for _, stderr in results)
    assert any("broken" in stderr or "damaged" in stderr for _, stderr in results), results
    assert checkpoints.complete_checkpoints(run)  # what was learnt is kept


@pytest.mark.parametrize(
    "launcher", ["accelerate", pytest.param("torchrun", marks=pytest.mark.long)]
)
def test_two_launched_processes_go_on_as_one_run(
    tmp_path: Path, data_set: Manifest, whole: dict[int, Path], launcher: str
) -> None:
    """With the default device; a rank whose gradients are its own alone ends with other weights."""
    run = Path(shutil.copytree(whole[2], tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "000000008")
    command = [*words(tmp_path, run, data_set.folder), *RESUME]
    run_ranks(launcher, tmp_path / "ranks", "cavmae.pretrain.train", command)
    same_end(run, whole[2])


SRUN = """#!/bin/bash
# Slurm's srun as far as the script needs it: a process for each task, all ended if one fails.
[ "$1" = --kill-on-bad-exit=1 ] && shift
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
done
for task in $(seq "$SLURM_NTASKS"); do
    wait -n || { code=$?; kill $(jobs -p); exit "$code"; }
done
"""
SCONTROL = """#!/bin/bash
[ "$*" = "show hostnames node[1-2]" ] && printf 'localhost\\nnode2\\n'
"""


@pytest.mark.long
def test_the_slurm_script_of_the_guide(
    tmp_path: Path, data_set: Manifest, whole: dict[int, Path]
) -> None:
    """Resubmitted after a kill; only names of folders and of the configuration are replaced."""
    guide = (Path(__file__).parents[3] / "docs/guides/machines.md").read_text()
    scripts = re.findall(r"```sh\n(#!/bin/bash\n#SBATCH.*?)```", guide, re.DOTALL)
    (script,) = [script for script in scripts if "--config multi-machine" in script]
    run = Path(shutil.copytree(whole[2], tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "000000008")
    config = words(tmp_path, run, data_set.folder)[1]
    for name, own in {
        "--config multi-machine --data.batch-size 32": f"--config {config}",
        "--out RUN": f"--out {run}",
        "--data.train /data/clips": f"--data.train {data_set.folder}",
        "MASTER_PORT=29500": f"MASTER_PORT={free_port()}",
    }.items():
        assert script.count(name) == 1
        script = script.replace(name, own)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "job.sh": script}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "node[1-2]", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", str(tmp_path / "job.sh")], env={**os.environ, **slurm, "PATH": path},
        stderr=subprocess.PIPE, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Going on from" in done.stderr
    same_end(run, whole[2])


@pytest.mark.parametrize(
    ("processes", "code", "expected"),
    [(1, 0, "step 2 of 2"), (2, 1, "launch with torchrun --nproc_per_node N")],
)
def test_accelerate_starts_one_process_on_the_cpu(
    tmp_path: Path, data_set: Manifest, processes: int, code: int, expected: str
) -> None:
    """It does whatever was asked for: a run that should have been of more ends at once."""
    run = tmp_path / "run"
    launcher = [
        "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--quiet",
    ]  # fmt: skip
    command = words(tmp_path, run, data_set.folder, loop={"steps": 2})
    ((ended, stderr),) = finish(launch([*launcher, "-m", "cavmae.pretrain.train", *command]))
    assert ended == code, stderr
    assert expected in stderr
    assert "Traceback" not in stderr
    samples = [line["samples"] for line in lines(run) if line["kind"] == "train"]
    assert samples == ([2, 4] if processes == 1 else [])
