"""Loading in worker processes."""

import gc
import os

from cavmae.datasets.loader import Loader
from cavmae.datasets.manifest import Manifest
from cavmae.datasets.stream import TrainStream
from cavmae.datasets.view import View


def test_workers_do_not_free_what_the_program_has_left_over(data_set: Manifest) -> None:
    """What is freed in a worker may wait forever for threads that were not forked."""

    class Leftover:
        def __init__(self) -> None:
            self.itself = self
            self.owner = os.getpid()

        def __del__(self) -> None:
            if os.getpid() != self.owner:
                os._exit(1)

    gc.disable()
    try:
        Leftover()
        loader = Loader(TrainStream(data_set, View(fbank_frames=64), 3), workers=2)
        batches = iter(loader)
        first = next(batches)
        gc.enable()
        assert first["key"]
        assert all(next(batches)["key"] for _ in range(12))
    finally:
        gc.enable()
