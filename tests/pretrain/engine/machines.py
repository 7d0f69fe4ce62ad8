"""Two machines on one: namespaces of the kernel, with a network cable between them.

Each machine has its own network, host name and hosts file; files are shared. The kernel removes a
network with the last process in it, and the first process of a machine ends with its standard
input: nothing is left of them, however the tests end.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

NAMES = ("machine-a", "machine-b")
ADDRESS = "10.0.0.{}"
NAMESPACES = ("--net", "--uts", "--mount")
# Names the hosts and the machine, then lives as long as its standard input.
FIRST = 'mount --bind "$1" /etc/hosts && hostname "$2" && ip link set lo up && echo up && exec cat'


def missing() -> str:
    """Sentence about what this computer lacks; empty: nothing."""
    for tool in ("ip", "unshare", "nsenter"):
        if shutil.which(tool) is None:
            return f"{tool} is missing: install iproute2 and util-linux"
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "true"], capture_output=True, text=True, check=False
    )
    return f"namespaces need root ({tried.stderr.strip()})" if tried.returncode else ""


class Started:
    """A process of a machine, and what it says on standard error."""

    def __init__(self, process: subprocess.Popen[bytes], messages: Path):
        self._process = process
        self._messages = messages
        self.poll = process.poll

    def messages(self) -> str:
        return self._messages.read_text()

    def finish(self, seconds: float = 120) -> tuple[int, str]:
        """Exit code and messages; one that hangs fails the test."""
        try:
            return self._process.wait(seconds), self.messages()
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"no end after {seconds} s: {self.messages()}") from None


class Machine:
    """A machine: starts processes, and loses its cable or its power."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        self._folder = folder
        self._started = 0
        self._first = subprocess.Popen(
            ["unshare", *NAMESPACES, "sh", "-c", FIRST, "sh", str(folder / "hosts"), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == b"up\n"
        self.pid = self._first.pid
        # The other machine keeps its network card when this one has no process any more.
        self._network = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)

    def start(self, words: Sequence[str], environment: Mapping[str, str] | None = None) -> Started:
        self._started += 1
        messages = self._folder / f"{self.name}-{self._started}.txt"
        with messages.open("wb") as file:
            process = subprocess.Popen(
                ["nsenter", "--target", str(self.pid), *NAMESPACES, "--", *words],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        return Started(process, messages)

    def link(self, *words: str) -> None:
        """``ip WORDS`` in its network."""
        command = ["nsenter", f"--net=/proc/self/fd/{self._network}", "ip", *words]
        subprocess.run(command, check=True, pass_fds=[self._network])

    def kill(self) -> None:
        """kill -9 of all its processes; the kernel closes their connections."""
        while processes := self._processes():
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        self._first.wait()

    def _processes(self) -> list[int]:
        """Numbers of the processes that are alive in its network."""
        own = os.fstat(self._network)
        pids = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # ended meanwhile, or not a process
                network = (folder / "ns" / "net").stat()
                if folder.name.isdecimal() and (network.st_dev, network.st_ino) == (
                    own.st_dev, own.st_ino,
                ):  # fmt: skip
                    pids.append(int(folder.name))
        return pids

    def lose_power(self) -> None:
        """All its processes end, and nobody is notified."""
        self.link("link", "set", "eth0", "down")
        self.kill()

    def close(self) -> None:
        self.kill()
        os.close(self._network)


@contextlib.contextmanager
def two_machines(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines, ``machine-a`` and ``machine-b``; the folder is for what they say."""
    folder.mkdir(parents=True, exist_ok=True)
    hosts = [f"{ADDRESS.format(n)} {name}" for n, name in enumerate(NAMES, 1)]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(contextlib.closing(Machine(n, folder))) for n in NAMES)
        a.link(
            *["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns"], str(b.pid)
        )
        for number, machine in enumerate((a, b), 1):
            machine.link("address", "add", f"{ADDRESS.format(number)}/24", "dev", "eth0")
            machine.link("link", "set", "eth0", "up")
        yield a, b
