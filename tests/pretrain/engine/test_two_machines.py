"""Training over two machines, one of which ends, reads slowly or has another time.

Run by `.ci/run`: programs are started as a person would, without the test's warm processes.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cavmae.datasets.format.manifest import Manifest
from cavmae.pretrain.engine import checkpoints
from tests.datasets.clips import clip, data_set_of
from tests.finetune.speaker import test_training as speaker
from tests.pretrain.engine.machines import Machine, Started, missing, two_machines
from tests.pretrain.engine.running import finish, launch, lines, trace, words

# The command of the README, with a process on each machine.
TORCHRUN = [
    "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
    "--rdzv_backend", "c10d", "--rdzv_endpoint", "machine-a:29500",
]  # fmt: skip
PRETRAIN, FINETUNE = ["-m", "cavmae.pretrain.train"], ["-m", "cavmae.finetune.train"]
ROOT = Path(__file__).parents[3]
SERVER = """
import sys, time
from pathlib import Path
from tests.serving import serving
with serving(Path(sys.argv[1])) as address:
    print(address, file=sys.stderr, flush=True)
    time.sleep(3600)
"""
# Of a machine whose wall clock is ahead by the seconds in a file, as `sitecustomize`: libfaketime
# would break sleeping. Times of files and those since the start are as they are.
CLOCK = """
import os, time
from pathlib import Path
wall, wall_ns, ahead = time.time, time.time_ns, Path(os.environ["AHEAD"])
time.time = lambda: wall() + int(ahead.read_text())
time.time_ns = lambda: wall_ns() + int(ahead.read_text()) * 10**9
"""


@pytest.fixture(autouse=True, scope="module")
def gate() -> None:
    if not os.environ.get("CAVMAE_CLUSTER"):
        pytest.skip("takes minutes: set CAVMAE_CLUSTER=1, as .ci/run does")
    if sentence := missing():
        pytest.skip(sentence)


@pytest.fixture(scope="module")
def whole(gate: None, tmp_path_factory: pytest.TempPathFactory, data_set: Manifest) -> Path:
    """A run of two processes of one machine."""
    folder = tmp_path_factory.mktemp("whole")
    return on_one_machine(PRETRAIN, words(folder, folder / "run", data_set.folder))


def on_one_machine(program: Sequence[str], command: Sequence[str]) -> Path:
    for code, messages in finish(launch([*program, *command], 2)):
        assert code == 0, messages
    return Path(command[command.index("--out") + 1])


def torchrun(
    machine: Machine,
    program: Sequence[str],
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> Started:
    return machine.start([sys.executable, *TORCHRUN, *program, *command], environment)


def wait_for(condition: Callable[[], bool], *started: Started) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end, [process.messages() for process in started]
        for process in started:
            assert process.poll() is None, process.messages()
        time.sleep(0.01)


def same_end(run: Path, other: Path) -> None:
    """To the bit: two processes add the same two numbers, wherever they run."""
    assert trace(run) == trace(other)
    ours, theirs = (checkpoints.complete_checkpoints(x) for x in (run, other))
    assert [path.name for path in ours] == [path.name for path in theirs]
    for name in ("model.safetensors", "trainer.safetensors"):
        a, b = (load_file(str(folder[-1] / name)) for folder in (ours, theirs))
        assert a.keys() == b.keys()
        assert all(a[key].equal(b[key]) for key in a), name


def ended_well(started: Sequence[Started]) -> str:
    """Messages of the first."""
    results = [process.finish(180) for process in started]
    for code, messages in results:
        assert code == 0, messages
    return results[0][1]


def test_a_machine_without_power_ends_the_run_and_a_slow_disk_does_not(
    tmp_path: Path, data_set: Manifest, whole: Path
) -> None:
    run = tmp_path / "run"
    command = [*words(tmp_path, run, data_set.folder), "--resume", "auto"]
    with two_machines(tmp_path / "before") as (a, b):
        started = [torchrun(m, PRETRAIN, [*command, "--loop.peer_timeout", "10"]) for m in (a, b)]
        wait_for(lambda: any(line["step"] == 5 for line in lines(run)), *started)
        b.lose_power()
        code, messages = started[0].finish(60)
    assert code == 1
    assert "Nothing has come for 10 s from process 1 of this run (machine-b)" in messages
    assert "--resume auto on all machines" in messages
    assert checkpoints.complete_checkpoints(run)
    assert [line["step"] for line in lines(run)][-1] < 8
    with two_machines(tmp_path / "after") as (a, b):
        server = b.start([sys.executable, "-c", SERVER, data_set.folder], {"PYTHONPATH": str(ROOT)})
        wait_for(lambda: "http" in server.messages(), server)
        slow = f"{server.messages().strip()}/slow"
        started = [
            torchrun(a, PRETRAIN, command),
            torchrun(b, PRETRAIN, [*command, "--data.train", slow]),
        ]
        assert "Going on from" in ended_well(started)
    same_end(run, whole)


def test_a_killed_first_machine_ends_the_run(
    tmp_path: Path, data_set: Manifest, whole: Path
) -> None:
    """It hosts the rendezvous, writes the files and holds the lock of the run."""
    run = tmp_path / "run"
    command = [*words(tmp_path, run, data_set.folder), "--resume", "auto"]
    with two_machines(tmp_path / "before") as (a, b):
        started = [torchrun(m, PRETRAIN, command) for m in (a, b)]
        wait_for(lambda: any(line["step"] == 5 for line in lines(run)), *started)
        a.kill()
        code, messages = started[1].finish(60)
    assert code == 1, messages
    assert "The connection to another process of this run broke" in messages
    assert (run / ".lock" / "lock").exists()
    with two_machines(tmp_path / "after") as (a, b):
        assert "Going on from" in ended_well([torchrun(m, PRETRAIN, command) for m in (a, b)])
    same_end(run, whole)


def fine_tuning(folder: Path, **loop: float) -> tuple[Manifest, dict[str, Any]]:
    """Clips, and changes of the settings of a run on them."""
    clips = data_set_of(folder / "set", [clip(n, speaker=f"s{n}", person=True) for n in range(8)])
    speaker.write(clips)
    model = {"train_encoder": "all"}
    return clips, {"data": speaker.listed(folder, clips), "model": model, "loop": loop}


def test_fine_tuning_goes_on_after_a_machine_without_power(tmp_path: Path) -> None:
    clips, changes = fine_tuning(tmp_path, steps=8, save_every=2, evaluate_every=3)
    run, other = tmp_path / "run", tmp_path / "other"
    on_one_machine(FINETUNE, speaker.words(other, clips, None, **changes))
    command = [*speaker.words(run, clips, None, **changes), "--resume", "auto"]
    with two_machines(tmp_path / "before") as (a, b):
        started = [torchrun(m, FINETUNE, [*command, "--loop.peer_timeout", "10"]) for m in (a, b)]
        wait_for(lambda: any(line["step"] == 5 for line in lines(run)), *started)
        b.lose_power()
        code, messages = started[0].finish(60)
    assert code == 1
    assert "process 1 of this run (machine-b)" in messages
    assert [line["step"] for line in lines(run)][-1] < 8
    with two_machines(tmp_path / "after") as (a, b):
        assert "Going on from" in ended_well([torchrun(m, FINETUNE, command) for m in (a, b)])
    same_end(run, other)


def test_fine_tuning_with_clocks_an_hour_apart(tmp_path: Path) -> None:
    """The first machine's clock is put forward in the middle of the run."""
    clips, changes = fine_tuning(tmp_path, save_every=0, save_minutes=30, evaluate_every=2)
    run, other = tmp_path / "run", tmp_path / "other"
    on_one_machine(FINETUNE, speaker.words(other, clips, None, **changes))
    command = speaker.words(run, clips, None, **changes)
    ahead = tmp_path / "ahead"
    ahead.write_text("0")
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    shifted = {"PYTHONPATH": str(tmp_path / "clock"), "AHEAD": str(ahead)}
    with two_machines(tmp_path / "machines") as (a, b):
        started = [torchrun(a, FINETUNE, command, shifted), torchrun(b, FINETUNE, command)]
        wait_for(lambda: bool(lines(run)), *started)
        ahead.write_text("3600")
        ended_well(started)
        clock = a.start([sys.executable, "-c", "import time; exit(str(time.time()))"], shifted)
        assert 3500 < float(clock.finish()[1]) - time.time() < 3700
    same_end(run, other)
