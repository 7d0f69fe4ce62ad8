"""Length of a run, and the progress that its schedules follow.

A run of epochs ends with the step in which the last of their samples is used, whatever the number
of processes, clips of a batch and batches of a step, also where it is resumed with others: a step
then stands for another number of samples than before.
"""

from typing import NamedTuple

from cavmae.pretrain.engine.settings import RunSettings


class RunLength(NamedTuple):
    """Length of a run with its present number of processes and samples of a step.

    Attributes:
        steps: of the optimizer, if all were of the present size.
        step_samples: samples of a step, of all processes.
        epoch_samples: samples of an epoch.
        total_samples: of the run; None: so many steps of whatever size.
    """

    steps: int
    step_samples: int
    epoch_samples: int
    total_samples: int | None

    @classmethod
    def of(cls, settings: RunSettings, epoch_samples: int, processes: int) -> "RunLength":
        """Length by ``loop.steps`` or ``loop.epochs``."""
        loop = settings.loop
        step_samples = settings.data.batch_size * loop.grad_accum_steps * processes
        if loop.steps:
            return cls(loop.steps, step_samples, epoch_samples, None)
        total_samples = max(1, round(loop.epochs * epoch_samples))
        return cls(-(-total_samples // step_samples), step_samples, epoch_samples, total_samples)

    @property
    def epoch_steps(self) -> float:
        """Steps of an epoch, as a fraction."""
        return self.epoch_samples / self.step_samples

    @property
    def epochs(self) -> float:
        """Epochs of the run, as a fraction."""
        return (self.total_samples or self.steps * self.step_samples) / self.epoch_samples

    def epoch(self, samples: int) -> int:
        """Number of epochs that are over after so many samples of all processes."""
        return samples // self.epoch_samples

    def progress(self, step: int, samples: int) -> float:
        """Fraction of the run that is done after so many steps of so many samples."""
        if self.total_samples is None:
            return step / self.steps
        return min(1.0, samples / self.total_samples)

    def last_step(self, step: int, samples: int) -> int:
        """Number of the run's last step, if those to come are of the present size."""
        if self.total_samples is None:
            return self.steps
        return step + max(0, -((samples - self.total_samples) // self.step_samples))
