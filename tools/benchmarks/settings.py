"""Options of all benchmarks. Imports no PyTorch, so that ``--help`` lists them at once."""

import dataclasses
from typing import Any, Literal

from cavmae.common.errors import UsageError
from cavmae.common.settings import DeviceSettings, SeedSettings
from cavmae.datasets.mixtures.sound_settings import SoundSettings
from cavmae.finetune.separation.settings import SoundDataSettings


@dataclasses.dataclass(frozen=True)
class BenchSettings:
    """Options of every benchmark with a table of rows.

    Args:
        out: JSON file for the rows.
    """

    out: str | None = None


@dataclasses.dataclass(frozen=True)
class TimedBench(BenchSettings):
    """Options of a benchmark that measures several ways in turns.

    Args:
        rounds: measurements of each way; their median counts.
    """

    rounds: int = 3

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"--rounds {self.rounds}: at least 1.")


@dataclasses.dataclass(frozen=True)
class StepsBench(TimedBench, DeviceSettings):
    """Options of a benchmark of training steps.

    Args:
        batch_size: clips or scenes of a step.
        steps: measured steps of a round, after warm-up steps.
        precision: of our steps; ``auto``: bf16 on a GPU, fp32 on the CPU.
    """

    batch_size: int = 8
    steps: int = 3
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.batch_size, self.steps) < 1:
            raise UsageError("--batch-size and --steps are at least 1.")


@dataclasses.dataclass(frozen=True)
class ShardBench(TimedBench):
    """Options of `cavmae bench shard`.

    Args:
        inputs: videos of 10 s; by default synthetic 720p H.264 ones.
        workers: of a whole run, compared with a run of 1 worker; 0: no such runs.
        memory_clips: clips over which the memory of a process is measured; 0: none.
    """

    inputs: tuple[str, ...] = ()
    workers: int = 2
    memory_clips: int = 0


@dataclasses.dataclass(frozen=True)
class PlanBench(TimedBench):
    """Options of `cavmae bench plan`.

    Args:
        rows: of the table of inputs.
        parts: number of parts that the list is also shared out to.
    """

    rows: int = 100_000
    parts: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.rows, self.parts) < 1:
            raise UsageError("--rows and --parts are at least 1.")


@dataclasses.dataclass(frozen=True)
class RenderBench(TimedBench):
    """Options of `cavmae bench render`.

    Args:
        speech: folder of recordings for another measurement; None: espeak-ng only.
    """

    speech: str | None = None


@dataclasses.dataclass(frozen=True)
class LipsBench:
    """Options of `cavmae bench lips`.

    Args:
        corpus: output folder of `cavmae render-talkers`.
    """

    corpus: str


@dataclasses.dataclass(frozen=True)
class LoadBench(TimedBench):
    """Options of `cavmae bench load`.

    Args:
        data_set: folder of shards; by default synthetic ones with 10 s clips of the events profile.
        memory_samples: samples over which the memory of a process is measured; 0: none.
    """

    data_set: str | None = None
    memory_samples: int = 0


@dataclasses.dataclass(frozen=True)
class PretrainBench(StepsBench):
    """Options of `cavmae bench pretrain`, on synthetic batches.

    Args:
        size: of the model.
        image: side of the frames in pixels.
        audio_frames: fbank frames of a clip.
        compile: also measure our steps with blocks compiled by inductor.
        sweep: further batch sizes for the first of our ways.
        frames: of a clip, for each of the temporal attentions beside one frame; 1: one only.
    """

    size: Literal["tiny", "small", "base", "large"] = "small"
    image: int = 224
    audio_frames: int = 1024
    compile: bool = False
    sweep: tuple[int, ...] = ()
    frames: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if min((*self.sweep, self.frames)) < 1:
            raise UsageError("--sweep: batch sizes are at least 1, as --frames is.")


@dataclasses.dataclass(frozen=True)
class TemporalBench(StepsBench):
    """Options of `cavmae bench temporal`, on clips of noise.

    Args:
        batch_size: clips of a step.
        size: of the encoder.
        image: side of the frames in pixels.
        frames: numbers of frames of a clip.
    """

    batch_size: int = 1
    size: Literal["tiny", "small", "base", "large"] = "tiny"
    image: int = 224
    frames: tuple[int, ...] = (1, 4, 8, 16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.frames or min(self.frames) < 1:
            raise UsageError("--frames: numbers of frames, each at least 1.")


@dataclasses.dataclass(frozen=True)
class FinetuneBench(StepsBench):
    """Options of `cavmae bench finetune`.

    Args:
        task: ``speakers``, composing its scenes; or ``events``, with the configuration `small-set`.
        data_set: folder of shards to compose from, or of labelled clips.
        size: configuration (speakers): ``tiny``, ``small`` or ``base``.
        encoder_size: size of the encoder, which is trained.
        workers: loading processes whose pace is compared with that of training (speakers: on a
            GPU).
        frames: of a clip (events) that passes of one frame average, and others take at once.
        variants: options of `cavmae finetune TASK`, as on a command line, of further models whose
            training steps are measured: ``["--model.motion x3d", "--model.lateral a-f-s"]``.
    """

    task: Literal["speakers", "events"] = "speakers"
    data_set: str = ""
    size: Literal["tiny", "small", "base"] = "tiny"
    encoder_size: Literal["tiny", "small", "base"] = "tiny"
    workers: int = 2
    frames: int = 10
    variants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.workers, self.frames) < 1:
            raise UsageError("--workers and --frames are at least 1.")
        other = ("frames", 10) if self.task == "speakers" else ("size", "tiny")
        if getattr(self, other[0]) != other[1]:
            raise UsageError(f"--{other[0]} is no option of --task {self.task}: leave it out.")


@dataclasses.dataclass(frozen=True)
class ParityBench(BenchSettings, DeviceSettings):
    """Options of `cavmae bench parity`. On the CPU only precisions are compared.

    Args:
        size: of the pretraining model.
        speaker: configuration of the speaker model: ``tiny``, ``small`` or ``base``.
        compile: backend of torch.compile to compare as well; ``off``: none.
    """

    size: Literal["tiny", "small", "base", "large"] = "base"
    speaker: Literal["tiny", "small", "base"] = "small"
    compile: str = "off"


@dataclasses.dataclass(frozen=True)
class LabelsBench:
    """Options of `cavmae bench labels`.

    Args:
        train: shards of labelled clips.
        encoder: pretrained encoder of the size ``encoder_size``.
        encoder_size: size of the encoder that starts from scratch.
        shards: shards of other people for the evaluation.
        list: scenes of those people, from `cavmae make-scenes`.
        clips: numbers of labelled clips to compare.
        seeds: runs of each start and number of clips.
        steps: training steps of every run.
        recipe: configuration of fine-tuning, as for `cavmae finetune speakers --config`.
        more: other options of `cavmae finetune speakers`, as on a command line.
        jobs: runs at a time, which share the cores of the processor.
        out: folder of runs, ``labels.json``, ``labels.md`` and ``labels.png``.
    """

    train: str = ""
    encoder: str = ""
    encoder_size: Literal["tiny", "small", "base"] = "tiny"
    shards: str = ""
    list: str = ""
    clips: tuple[int, ...] = (16, 64, 256)
    seeds: int = 3
    steps: int = 150
    recipe: str = "tiny"
    more: str = ""
    jobs: int = 1
    out: str = ""

    def __post_init__(self) -> None:
        for name in ("train", "encoder", "shards", "list", "out"):
            if not getattr(self, name):
                raise UsageError(f"bench labels needs --{name}.")
        if min(*self.clips, self.seeds, self.steps, self.jobs) < 1:
            raise UsageError("--clips, --seeds, --steps and --jobs are at least 1.")


@dataclasses.dataclass(frozen=True)
class SeparateBench(TimedBench, DeviceSettings):
    """Options of `cavmae bench separate`.

    The unit is a second of the recording, so ms a second / 1000 is the real-time factor.

    Args:
        models: checkpoints of `cavmae finetune speakers`, for instance of several sizes.
        video: recording; None: a synthetic one.
        precision: of the models.
    """

    models: tuple[str, ...] = ()
    video: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


@dataclasses.dataclass(frozen=True)
class SoundStepsBench(StepsBench):
    """Options of `cavmae bench sound-steps`.

    Args:
        speech: folders of recordings, one speaker for the beginnings of names; at least three.
        cache: folder for decoded recordings.
        recipes: configurations of `cavmae finetune separator`, whose models are measured.
        compile: also measure with torch.compile.
        made_together: batches whose mixtures are made in one go.
    """

    speech: tuple[str, ...] = ()
    cache: str = "sound-cache"
    recipes: tuple[str, ...] = ("tiny", "base")
    compile: bool = False
    made_together: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.made_together < 1:
            raise UsageError(f"--made_together {self.made_together}: at least 1.")
        if not self.speech:
            raise UsageError("Name folders of speech: --speech '[FOLDER, ...]'.")


@dataclasses.dataclass(frozen=True)
class SeparatorsBench(SeedSettings):
    """Options of `cavmae bench separators`.

    Args:
        entries: separators of the registry, names or mappings with options such as
            ``{name: unet, width: 16}``; empty: all of them with their defaults.
        minutes: CPU time of one core that each of them is trained for.
        precision: of training; separators are measured in fp32.
        lr: largest learning rate, after a warm-up; a cosine over the minutes follows.
        width: of the embedding of a voice.
        evaluations: in equal parts of the minutes, on the first 32 mixtures of each list.
        data: recordings, as of `cavmae finetune separator`.
        mix: distribution of mixtures and cues; with a ``ramp`` it follows the minutes, so that
            separators of different speed no longer learn from the same mixtures.
        out: folder of results, ``separators.json``, ``separators.md`` and ``separators.png``;
            separators whose results it holds are not trained again.
    """

    entries: tuple[Any, ...] = ()
    minutes: float = 40.0
    precision: Literal["fp32", "bf16"] = "fp32"
    lr: float = 1e-3
    width: int = 64
    evaluations: int = 8
    data: SoundDataSettings = SoundDataSettings(batch_size=4)
    mix: SoundSettings = SoundSettings(ramp=0.0)
    out: str = ""

    def __post_init__(self) -> None:
        if not self.out or not self.data.train or not self.data.held_out:
            raise UsageError(
                "bench separators needs --out FOLDER, and folders of speech: "
                "--data.train '[FOLDER, ...]' and --data.held-out '[FOLDER, ...]'."
            )
        if min(self.minutes, self.lr) <= 0 or min(self.evaluations, self.width) < 1:
            raise UsageError(
                "--minutes and --lr are above 0, --evaluations and --width at least 1."
            )


@dataclasses.dataclass(frozen=True)
class VariantsBench(SeedSettings):
    """Options of `cavmae bench variants`.

    Args:
        task: of `cavmae finetune`: ``speakers`` or ``events``.
        recipe: configuration of the task, a name or a file; empty: ``tiny`` of speakers,
            ``small-set`` of events.
        options: of `cavmae finetune TASK`, as on a command line, that all models have: their data
            (``--data.train``, ``--data.held-out``), and what differs from the configuration.
        variants: options of each model beside the default, which is always there:
            ``["--model.lateral a-fs", "--model.motion x3d"]``.
        seeds: of initial weights and data, counted from ``seed``; each model has one run of each.
        minutes: CPU time of one core that each run is trained for.
        evaluations: in equal parts of the minutes, on all that is held out.
        jobs: runs at a time, each on a core of its own.
        out: folder of results and ``variants.json``, ``variants.md``, ``variants.png``; runs whose
            results it holds are not trained again.
    """

    task: Literal["speakers", "events"] = "speakers"
    recipe: str = ""
    options: str = ""
    variants: tuple[str, ...] = ()
    seeds: int = 3
    minutes: float = 20.0
    evaluations: int = 4
    jobs: int = 1
    out: str = ""

    def __post_init__(self) -> None:
        if not self.out or not self.variants:
            raise UsageError(
                "bench variants needs --out FOLDER and --variants '[\"OPTIONS\", ...]'."
            )
        if len({*self.variants, ""}) <= len(self.variants):
            raise UsageError("--variants: the default is there, name each of the others once.")
        if self.minutes <= 0 or min(self.seeds, self.evaluations, self.jobs) < 1:
            raise UsageError("--minutes is above 0; --seeds, --evaluations and --jobs at least 1.")
