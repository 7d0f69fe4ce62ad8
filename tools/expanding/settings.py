"""Options of `cavmae expand`. Imports no PyTorch, so that ``--help`` lists them at once."""

import dataclasses
from typing import Literal

from cavmae.common.errors import UsageError
from cavmae.common.settings import SeedSettings
from cavmae.datasets.mixtures.scene_spec import NOT_SINGLE, ComposeSettings
from cavmae.finetune.motion.settings import MotionOptions, X3DOptions

COMPOSE = ComposeSettings(
    height=224, width=224, people=(0.5, 0.5, 0.0), silent_prob=0.0, off_screen_prob=0.0,
    noise_prob=0.0, all_off_screen_prob=0.0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ExpandDataSettings:
    """Clips of single people (`--profile speakers`) with masks, from which scenes are composed.

    Args:
        train: folder or URL of the shards to train on.
        held_out: folder or URL of shards of other people, for the score.
        scenes: scenes that are composed from ``train`` and repeated, the same in every trial of a
            clip length; they are kept in memory.
        held_out_scenes: scenes that are composed from ``held_out``, the same in every trial.
        batch_size: scenes of a training step, and of evaluation.
        exclude: labels of clips that are not used; backgrounds may have those of sound.
        max_broken: largest fraction of broken scenes in an epoch before a trial fails.
    """

    train: str = ""
    held_out: str = ""
    scenes: int = 600
    held_out_scenes: int = 48
    batch_size: int = 4
    exclude: tuple[str, ...] = NOT_SINGLE
    max_broken: float = 0.01


@dataclasses.dataclass(frozen=True)
class ExpandSettings(SeedSettings):
    """Options of the search.

    Args:
        out: folder of the trials, ``expand.json``, ``expand.md`` and ``expand.png``; trials whose
            results it holds are not trained again.
        budget_gmacs: largest cost in 10^9 multiply-adds for a second of video; 0: not limited.
        budget_ms: largest cost in milliseconds of one core of this machine for a second of video;
            0: not limited. One of the two budgets is given.
        axes: in the order in which they are tried: ``resolution`` of the crops around heads,
            ``seconds`` of a clip, and those of ``motion``; empty: all.
        motion: pathway that the search starts from.
        resolution: side of the crops around heads at the start, in pixels.
        seconds: of a clip at the start.
        minutes: CPU time of one core that each trial is trained for.
        lr: largest learning rate, after a warm-up; a cosine over the minutes follows.
        precision: of training; costs are measured in fp32.
        width: of the embedding of a person's motion.
        evaluations: in equal parts of the minutes, each followed by a checkpoint.
        jobs: trials at a time, each on a core of its own.
        data: clips of the scenes.
        compose: distribution of the scenes. Its ``seconds`` are those of held-out scenes, which a
            network reads clip by clip, and the longest clips of the search.
    """

    out: str = ""
    budget_gmacs: float = 0.0
    budget_ms: float = 0.0
    axes: tuple[str, ...] = ()
    motion: MotionOptions = X3DOptions(width=8, bottleneck=1.0, depth=1, frame_stride=4)
    resolution: int = 32
    seconds: float = 0.64
    minutes: float = 10.0
    lr: float = 2e-3
    precision: Literal["fp32", "bf16"] = "fp32"
    width: int = 64
    evaluations: int = 4
    jobs: int = 1
    data: ExpandDataSettings = ExpandDataSettings()
    compose: ComposeSettings = COMPOSE

    def __post_init__(self) -> None:
        if not self.out or not self.data.train or not self.data.held_out:
            raise UsageError(
                "expand needs --out FOLDER, and shards of clips: --data.train FOLDER and "
                "--data.held-out FOLDER."
            )
        if not min(self.budget_gmacs, self.budget_ms) == 0 < max(self.budget_gmacs, self.budget_ms):
            raise UsageError("Give one budget above 0: --budget-gmacs G or --budget-ms MS.")
        if min(self.minutes, self.lr) <= 0:
            raise UsageError("--minutes and --lr are above 0.")
        counts = (
            self.width - 3, self.evaluations, self.jobs, self.data.batch_size,
            self.data.scenes, self.data.held_out_scenes,
        )  # fmt: skip
        if min(counts) < 1:
            raise UsageError(
                "--evaluations, --jobs, --data.batch-size, --data.scenes and "
                "--data.held-out-scenes are at least 1, --width is at least 4."
            )
