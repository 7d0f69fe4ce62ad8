"""Options that several commands share: a name and a help text of each, to be mixed in."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DeviceSettings:
    """Device of a model.

    Args:
        device: ``auto`` (a GPU of CUDA if there is one, else the CPU), or a device of PyTorch, such
            as ``cpu`` or ``cuda``.
    """

    device: str = "auto"


@dataclasses.dataclass(frozen=True)
class LoaderSettings:
    """Batches of a model.

    Args:
        batch_size: clips or scenes of a batch.
        workers: processes that prepare batches; 0: this one.
    """

    batch_size: int = 8
    workers: int = 1


@dataclasses.dataclass(frozen=True)
class PoolSettings:
    """Worker processes of a data set.

    Args:
        workers: processes; 0: one for each core.
    """

    workers: int = 0


@dataclasses.dataclass(frozen=True)
class LimitedPoolSettings(PoolSettings):
    """Worker processes that skip a faulty input.

    Args:
        timeout: seconds without a finished clip, or another sign of progress, after which an input
            or a clip is skipped.
        memory_gb: memory of a worker above which its input or clip is skipped, in 10^9 bytes.
    """

    timeout: float = 300.0
    memory_gb: float = 4.0


@dataclasses.dataclass(frozen=True)
class SeedSettings:
    """Seed of random numbers.

    Args:
        seed: of everything random.
    """

    seed: int = 0
