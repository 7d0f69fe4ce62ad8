"""What the tests of training share: a run of all objectives on small clips, in real processes."""

import atexit
import dataclasses
import functools
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from cavmae.common.files import is_url
from cavmae.datasets.format.manifest import Manifest

SETTINGS: dict[str, Any] = {
    "data": {
        "batch_size": 2, "window": 0.96, "frames": 2, "workers": 1, "shuffle_buffer": 4,
        "statistics": "audioset",
    },
    "model": {
        "size": "tiny", "image_height": 32, "image_width": 48, "audio_frames": 96,
        "contrast_width": 16, "depth": 2, "decoder_depth": 1,
    },
    "objective": {
        "aligned_weight": 0.5, "hard_negative_fraction": 0.5, "learned_temperature": True,
    },
    "optimizer": {"lr": 1e-3, "ema": 0.9},
    "loop": {
        "steps": 8, "log_every": 1, "evaluate_every": 5, "save_every": 2, "threads": 1,
        "tracker": "none",
    },
}  # fmt: skip
RANKS = str(Path(__file__).with_name("ranks_process.py"))
# Ways to start a script in two processes that a person would use.
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "PORT"],
    "accelerate": [
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "PORT",
    ],
}  # fmt: skip
# What may differ from one run to the next.
CLOCKS = {
    "samples_per_sec", "step_time", "data_wait", "flops_per_sec", "memory_gb",
}  # fmt: skip


def words(folder: Path, run: Path, shards: str | Path, **changes: Any) -> list[str]:
    """The command's words; ``changes`` like ``loop={"steps": 3}``."""
    settings = {part: {**values, **changes.get(part, {})} for part, values in SETTINGS.items()}
    held_out = settings["data"].get("held_out") or beginning_of(str(shards))
    settings["data"] |= {"train": str(shards), "held_out": held_out}
    path = folder / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return ["--config", str(path), "--out", str(run)]


def beginning_of(shards: str) -> str:
    """Two shards of a data set beside it: evaluating all of it takes half of the time of a run."""
    if is_url(shards) or not Path(shards, "manifest.json").exists():
        return shards
    folder = Path(shards).with_name(f"{Path(shards).name}-held-out")
    if not folder.exists():
        manifest = Manifest.load(shards)
        few = dataclasses.replace(manifest, folder=str(folder), shards=manifest.shards[:2])
        folder.mkdir()
        for shard in few.shards:
            (folder / shard.file).hardlink_to(manifest.path_of(shard))
        (folder / "manifest.json").write_bytes(few.to_bytes())
    return str(folder)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        port: int = sock.getsockname()[1]
        return port


class Zygote:
    """The process that forks those of the tests; see zygote.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        atexit.register(self._process.kill)
        self._pids: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.codes: dict[int, int] = {}
        self._starting = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "pid" in message:
                self._pids.put(message["pid"])
            else:
                self.codes[message["ended"]] = message["code"]

    def start(self, **request: Any) -> int:
        """Number of a new process."""
        assert self._process.stdin is not None
        with self._starting:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return self._pids.get(timeout=60)


zygote = functools.cache(Zygote)


class Process:
    """A process of the zygote's, used as one of ``subprocess``."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], file_limit: int | None):
        handle, name = tempfile.mkstemp()
        os.close(handle)
        self._stderr = Path(name)
        self.pid = zygote().start(
            command=[*command], environment=environment, file_limit=file_limit, stderr=name
        )

    @property
    def returncode(self) -> int | None:
        return zygote().codes.get(self.pid)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        end = time.monotonic() + timeout
        while (code := self.returncode) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float) -> tuple[None, str]:
        """Nothing, and its standard error, once it has ended."""
        self.wait(timeout)
        return None, self._stderr.read_text()


def launch(
    command: Sequence[str], processes: int = 1, file_limit: int | None = None
) -> list[Process]:
    """Starts ``python COMMAND`` once or several times, joined as torchrun would join them.

    Args:
        file_limit: bytes that no file can grow beyond; None: none.
    """
    port = str(free_port())
    started = []
    for rank in range(processes):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if processes > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
            }  # fmt: skip
        started.append(Process(command, environment, file_limit))
    return started


def train(command: Sequence[str], processes: int = 1, **options: Any) -> list[Any]:
    """Starts the training command."""
    return launch(["-m", "cavmae.pretrain.train", *command], processes, **options)


def run_ranks(launcher: str, folder: Path, module: str, command: Sequence[str]) -> None:
    """Runs a training command in two processes and asserts that they end with the same weights."""
    folder.mkdir()
    port = str(free_port())
    start = [port if word == "PORT" else word for word in LAUNCHERS[launcher]]
    ((code, stderr),) = finish(launch(["-m", *start, RANKS, str(folder), module, *command]))
    assert code == 0, stderr
    first, second = (load_file(str(folder / f"{rank}.safetensors")) for rank in range(2))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def finish(started: Sequence[Process], seconds: float = 240) -> list[tuple[int, str]]:
    """Exit codes and what was said; a process that hangs is killed, and a failure."""
    results = []
    try:
        for process in started:
            _, stderr = process.communicate(timeout=seconds)
            results.append((process.returncode, stderr))
    finally:
        kill(started)
    return results


def kill(started: Sequence[Process]) -> None:
    """kill -9 of whole process groups: loader workers too."""
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.wait()


def lines(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def wait_for(what: Callable[[], bool], started: Sequence[Any], seconds: float = 180) -> None:
    """Waits until something is so, while the processes live."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it took too long"
        assert all(process.poll() is None for process in started), finish(started)
        time.sleep(0.0005)


def trace(run: Path) -> list[dict[str, Any]]:
    """Metrics of a run without its clocks; their names are such that every tool takes them."""
    for line in lines(run):
        assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in line), line
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines(run)]
