"""Loader with worker processes."""

import gc
import os
import weakref
from collections.abc import Iterator

from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.loader import Loader, _fork_without_garbage
from cavmae.datasets.stream.stream import TrainStream
from cavmae.datasets.stream.view import View


class Leftover:
    """Garbage that only a collection frees, like the scalers of PyAV."""

    def __init__(self) -> None:
        self.itself = self


def test_a_worker_never_collects_the_garbage_of_this_process(data_set: Manifest) -> None:
    """Garbage freed in a worker may wait forever for threads that were not forked."""
    gc.disable()  # so that no collection but those of this test frees it
    try:
        left = weakref.ref(Leftover())
        children: list[int] = []

        class Forking:
            def __iter__(self) -> Iterator[None]:
                if not (pid := os.fork()):
                    gc.collect()
                    os._exit(left() is None)
                children.append(pid)
                return iter(())

        list(_fork_without_garbage(Forking()))
        assert os.waitpid(children[0], 0)[1] == 0
        assert gc.get_freeze_count() == 0  # and this process goes on collecting
        loader = Loader(TrainStream(data_set, View(fbank_frames=64), 3), workers=2)
        assert next(iter(loader))["key"]
        gc.collect()
        assert left() is None
    finally:
        gc.enable()
