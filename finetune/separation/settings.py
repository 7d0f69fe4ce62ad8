"""Settings of a training run of the sound separator. Imports no PyTorch."""

import dataclasses

from cavmae.common.errors import UsageError
from cavmae.datasets.mixtures.sound_settings import SoundSettings
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.pretrain.engine.settings import LoopSettings, OptimizerSettings


@dataclasses.dataclass(frozen=True)
class SoundDataSettings:
    """Recordings to train and to measure with.

    Args:
        train: folders of speech; the part of a file's name before the first ``-`` names its
            speaker, of whom no two recordings are in one mixture.
        noise: folders of noise; empty: mixtures without noise.
        held_out: folders of speech of other speakers, each a list of mixtures to measure with.
        cache: folder for decoded recordings, 115 MB an hour.
        batch_size: mixtures of a batch, for each process that trains.
        made_together: batches whose mixtures are made in one go: a GPU takes about as long for a
            few mixtures as for hundreds.
        held_out_mixtures: mixtures of each list, in batches of 8.
        workers: processes that decode recordings, once; 0: one for each core.
    """

    train: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    cache: str = "sound-cache"
    batch_size: int = 16
    made_together: int = 1
    held_out_mixtures: int = 96
    workers: int = 0

    def __post_init__(self) -> None:
        bounds = (
            ("batch_size", 1), ("made_together", 1), ("held_out_mixtures", 8), ("workers", 0),
        )  # fmt: skip
        for name, least in bounds:
            if getattr(self, name) < least:
                raise UsageError(f"data.{name} {getattr(self, name)}: at least {least}.")


@dataclasses.dataclass(frozen=True)
class SoundModelSettings(SoundSeparatorConfig):
    """Model and its initial weights.

    Args:
        init_from: checkpoint of `cavmae finetune separator`, or of `cavmae finetune speakers`,
            whose separator is taken: a folder, or a name in the box or on the hub. The model is
            trained further, and its configuration counts. None: a new model.
    """

    init_from: str | None = None

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise UsageError(f"model: {error}") from error


@dataclasses.dataclass(frozen=True)
class SoundLossSettings:
    """Weights of the losses, whose sum is minimised.

    Args:
        sdr_weight: of a dB of the voices' SDR.
        silence_weight: of a dB of energy, relative to the mixture, of people who are silent.
        activity_weight: of the cross-entropy of activity in each 40 ms.
        spectrum_weight: of the L1 difference of compressed complex spectra.
    """

    sdr_weight: float = 0.1
    silence_weight: float = 0.01
    activity_weight: float = 0.3
    spectrum_weight: float = 1.0

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 0:
            raise UsageError("loss: weights cannot be negative.")


@dataclasses.dataclass(frozen=True)
class SoundLoopSettings(LoopSettings):
    """Length and conduct of a run of the sound separator.

    Args:
        cuda_graph: record the first step of one GPU as a graph and replay it: steps of small
            batches, hundreds of short operations, no longer wait for the program.
    """

    cuda_graph: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cuda_graph and self.grad_accum_steps > 1:
            raise UsageError(
                "loop.cuda_graph: a replayed step overwrites its gradients; leave "
                "loop.grad_accum_steps at 1 and use a larger data.batch_size."
            )


@dataclasses.dataclass(frozen=True)
class SeparationSettings:
    """A training run of the sound separator.

    Args:
        data: recordings.
        mix: distribution of mixtures and cues.
        model: its shape and initial weights.
        loss: weights of the losses.
        optimizer: updates of the weights.
        loop: length and conduct of the run.
    """

    data: SoundDataSettings = SoundDataSettings()
    mix: SoundSettings = SoundSettings()
    model: SoundModelSettings = SoundModelSettings()
    loss: SoundLossSettings = SoundLossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    loop: SoundLoopSettings = SoundLoopSettings()
