"""Loader with worker processes."""

import gc
import weakref

from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.stream import TrainStream
from cavmae.datasets.stream.view import View


class Leftover:
    """Garbage that only a collection frees, like the scalers of PyAV."""

    def __init__(self) -> None:
        self.itself = self


def test_garbage_is_freed_before_workers_are_forked(data_set: Manifest) -> None:
    """Garbage freed in a worker may wait forever for threads that were not forked."""
    gc.disable()  # so that no collection but the loader's own frees it
    try:
        left = weakref.ref(Leftover())
        assert left() is not None
        loader = Loader(TrainStream(data_set, View(fbank_frames=64), 3), workers=2)
        batches = iter(loader)
        assert next(batches)["key"]
        assert left() is None
        assert gc.get_freeze_count() == 0  # and this process goes on collecting
    finally:
        gc.enable()
