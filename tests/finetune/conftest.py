"""Fixtures of all tests of fine-tuning."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def no_accelerator() -> Iterator[None]:
    """Accelerate's state is that of a process: without this, a second run would get the first's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
