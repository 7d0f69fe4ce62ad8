"""Starts processes that need not import anything: forks of one that has.

Most of the time of a short training run is importing PyTorch. This process imports everything, does
nothing else, and forks for each line of JSON on its standard input; on its standard output it tells
each child's number and exit code. A child is a process as any other: its own session, environment,
standard error and limits.
"""

import json
import os
import resource
import runpy
import select
import signal
import sys
from typing import Any

import torch._dynamo  # noqa: F401 - any optimizer imports it

import cavmae.finetune.events.run
import cavmae.finetune.speaker.run
import cavmae.finetune.train
import cavmae.pretrain.engine.trainer
import cavmae.pretrain.run
import cavmae.pretrain.train
import cavmae.tools.benchmarks.variants
import cavmae.tools.evaluating.measure
import cavmae.tools.expanding.run  # noqa: F401


def become(request: dict[str, Any]) -> None:
    """Runs a command as ``python`` would, in this process."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(os.open(request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["file_limit"]:  # writing on fails then, as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    kind, *words = request["command"]
    if kind == "-m":
        sys.argv = words
        sys.modules.pop(words[0], None)  # else runpy warns
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *words[1:]]
        exec(words[0], {"__name__": "__main__"})
    else:
        sys.argv = [kind, *words]
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    buffered = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.01)
        if ready:
            received = os.read(0, 1 << 16)
            if not received:
                return
            *lines, buffered = (buffered + received).split(b"\n")
            for line in lines:
                pid = os.fork()
                if not pid:
                    become(json.loads(line))
                    return
                os.write(1, b'{"pid": %d}\n' % pid)
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                code = os.waitstatus_to_exitcode(ended[1])
                os.write(1, b'{"ended": %d, "code": %d}\n' % (ended[0], code))
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main()
