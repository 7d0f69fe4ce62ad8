"""Device of an option, and batches on it."""

import pytest
import torch

from cavmae.common.device import device_of, to_device
from cavmae.common.errors import UsageError


def test_auto_is_a_gpu_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert device_of("auto") == torch.device(kind)
    assert device_of("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:77", "gpu", "xla", ""])
def test_a_device_that_is_not_there_is_a_mistake_of_its_option(name: str) -> None:
    with pytest.raises(UsageError, match=f"loop.device {name}.*; use auto or cpu"):
        device_of(name, "loop.device")


def test_only_tensors_of_a_batch_move() -> None:
    batch = {"key": ["a"], "frames": torch.zeros(2)}
    moved = to_device(batch, torch.device("meta"))
    assert moved["frames"].device.type == "meta"
    assert moved["key"] is batch["key"]
    assert batch["frames"].device.type == "cpu"
