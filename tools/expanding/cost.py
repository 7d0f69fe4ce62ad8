"""Cost of a motion pathway for a second of video: multiply-adds, or measured time of one core."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes, read_json
from cavmae.finetune.motion.settings import MOTION
from cavmae.pretrain.engine.task import forward_flops
from cavmae.tools.expanding.axes import Network

LEAST_ROUNDS = 5  # forward passes whose median counts
ROUNDS_SECONDS = 0.3  # that they take at least


def gmacs_per_second(network: Network) -> float:
    """Multiply-adds in 10^9 for a second of video."""
    side = network.resolution
    with torch.device("meta"):
        pathway = MOTION.build(network.motion)
        frames = torch.zeros(1, network.frames, side, side, dtype=torch.uint8)
        flops = forward_flops(lambda: pathway(frames))
    return flops / 2 / 1e9 / network.seconds


@torch.no_grad()
def ms_per_second(network: Network) -> float:
    """CPU milliseconds for a second of video: clips of noise, one at a time, one thread, fp32."""
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    shape = 1, network.frames, network.resolution, network.resolution
    frames = torch.randint(256, shape, generator=rng, dtype=torch.uint8)
    pathway = MOTION.build(network.motion).eval()
    pathway(frames)
    times: list[float] = []
    while len(times) < LEAST_ROUNDS or sum(times) < ROUNDS_SECONDS:
        started = time.process_time()
        pathway(frames)
        times.append(time.process_time() - started)
    return statistics.median(times) * 1e3 / network.seconds


class CostBook:
    """Costs by the label of a network, kept in a file: a resumed search takes the same path.

    Args:
        path: JSON file.
        measured: whether costs are milliseconds, else multiply-adds in 10^9.
    """

    def __init__(self, path: Path, measured: bool):
        self.path = path
        self.measure = ms_per_second if measured else gmacs_per_second
        self.costs: dict[str, float] = {}
        if path.exists():
            record: Mapping[str, Any] = read_json(path)
            self.costs = {name: float(value) for name, value in record.items()}

    def cost(self, network: Network) -> float:
        """Cost for a second of video."""
        if network.label not in self.costs:
            self.costs[network.label] = self.measure(network)
            with write_atomically(self.path) as file:
                file.write(json_bytes(self.costs, indent=1))
        return self.costs[network.label]
