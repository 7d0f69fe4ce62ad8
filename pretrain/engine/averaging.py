"""Averages of a model's weights over training: exponential by step, or a running mean by epoch.

The running mean over the ends of epochs is what the CAV-MAE reference (Gong et al., ICLR 2023)
computes from a file of each epoch; here no such file is written.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cavmae.common.errors import UsageError
from cavmae.pretrain.engine.settings import OptimizerSettings


class WeightAverage:
    """Averaged weights of a model.

    Args:
        model: whose weights are averaged.
        settings: kind of the average.
        epoch_steps: optimizer steps of an epoch, as a fraction.

    Attributes:
        count: number of updates.
        epochs: first and last epoch whose ends are in the mean; None: there are none.

    Raises:
        UsageError: an epoch of less than a step, which has no end of its own.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings, epoch_steps: float):
        self._settings = settings
        if settings.average_from_epoch and epoch_steps < 1:
            raise UsageError(
                f"optimizer.average_from_epoch: an epoch has {epoch_steps:.2g} steps; use smaller "
                "batches, or average with optimizer.ema."
            )
        average = get_ema_multi_avg_fn(settings.ema) if settings.ema else None
        self._average = AveragedModel(model, multi_avg_fn=average)  # None: all weigh the same
        self.epochs: tuple[int, int] | None = None

    @property
    def count(self) -> int:
        return int(self._average.n_averaged)

    def update(self, model: nn.Module, ended_epoch: int) -> None:
        """Includes the weights after a step, if they belong to the average.

        Args:
            model: whose weights are averaged.
            ended_epoch: number, counted from 1, of the epoch whose last samples the step has used;
                0: its epoch goes on.
        """
        first = self._settings.average_from_epoch
        if self._settings.ema or ended_epoch >= first:
            self._average.update_parameters(model)
            if first:
                self.epochs = (self.epochs or (ended_epoch,))[0], ended_epoch

    def state_dict(self) -> dict[str, Tensor] | None:
        """Averaged weights on the CPU; None: nothing was averaged yet."""
        if not self.count:
            return None
        return {name: value.cpu() for name, value in self._average.module.state_dict().items()}

    def description(self) -> dict[str, Any]:
        """Kind of the average, as JSON values that are saved beside the averaged weights."""
        if self._settings.ema:
            return {"ema": self._settings.ema}
        if self.epochs is None:
            return {}
        return {"first_epoch": self.epochs[0], "last_epoch": self.epochs[1]}

    def load_state_dict(
        self, weights: Mapping[str, Tensor], count: int, description: Mapping[str, Any]
    ) -> None:
        """Resumes from averaged weights after ``count`` updates.

        Args:
            description: of :meth:`description`, when they were saved.

        Raises:
            UsageError: the settings make another kind of average, or a mean from another epoch on.
        """
        first = self._settings.average_from_epoch
        if count and description.get("first_epoch", 0) != first:
            began = description.get("first_epoch")
            kind = f"optimizer.average_from_epoch {began}" if began else "optimizer.ema"
            raise UsageError(
                f"The average of this run's weights is one of {kind}: set that again, or start a "
                "new run from its weights."
            )
        if count and first:
            self.epochs = first, int(description["last_epoch"])
        self._average.module.load_state_dict(weights)
        self._average.n_averaged.fill_(count)
