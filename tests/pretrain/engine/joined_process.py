"""One of two processes: contrasts over gathered batches, loops that one cannot go on with.

Usage: python joined_process.py FOLDER WHAT. The test beside it looks at what it writes.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.stream.collate import Batch
from cavmae.pretrain.engine import trainer_state
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.hub import HubWeights
from cavmae.pretrain.engine.run_length import RunLength
from cavmae.pretrain.engine.run_setup import distributed_run
from cavmae.pretrain.engine.settings import LoopSettings, OptimizerSettings
from cavmae.pretrain.engine.task import Embeddings, Record, StepOutput, Task
from cavmae.pretrain.engine.trainer import Trainer
from cavmae.pretrain.frame_contrast import TimeBins, frame_contrast
from cavmae.pretrain.losses import info_nce

CLIPS, FRAMES, MOMENTS, WIDTH = 6, 3, 5, 8


def inputs() -> dict[str, Tensor]:
    """Embeddings of all clips, the same in every process."""
    g = torch.Generator().manual_seed(3)
    own = torch.stack([torch.randperm(MOMENTS, generator=g)[:FRAMES] for _ in range(CLIPS)])
    return {
        "audio": torch.randn(CLIPS, WIDTH, generator=g),
        "video": torch.randn(CLIPS, WIDTH, generator=g),
        "sound": torch.randn(CLIPS, MOMENTS, WIDTH, generator=g),
        "frames": torch.randn(CLIPS, FRAMES, WIDTH, generator=g),
        "own": own,
        "heard": torch.rand(CLIPS, FRAMES, generator=g) > 0.3,
    }


class Maps(nn.Module):
    """Something with weights between inputs and contrasts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.map = nn.ModuleDict(
            {name: nn.Linear(WIDTH, WIDTH) for name in ("audio", "video", "sound", "frames")}
        )

    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = {name: layer(given[name]) for name, layer in self.map.items()}
        clips = info_nce(x["audio"], x["video"], 0.1, both=True)
        one_way = info_nce(x["audio"], x["video"], 0.1, both=False)
        moments = TimeBins(x["sound"], x["frames"], given["own"], given["heard"])
        aligned = frame_contrast(moments, 0.1)
        return {
            "both": clips.loss, "one": one_way.loss, "accuracy": clips.accuracy,
            **aligned._asdict(),
        }  # fmt: skip


def contrasts(module: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Losses and the gradients of their sum."""
    losses = module(given)
    sum(losses[k] for k in ("both", "one", "easy", "hard")).backward()  # type: ignore[union-attr]
    outputs = {name: value.detach() for name, value in losses.items()}
    names = (
        module.module.named_parameters() if hasattr(module, "module") else module.named_parameters()
    )
    return outputs | {f"gradient {k}": p.grad.clone() for k, p in names if p.grad is not None}


class Scaled(nn.Module):
    """A task's shape: a model and a number of the task's own."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Maps()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, given: Mapping[str, Tensor]) -> Tensor:
        # Nothing is gathered: with the same inputs every process has the whole run's gradient.
        made = [layer(given[name]) for name, layer in self.model.map.items()]
        return self.scale.sum() * torch.stack([(x**2).mean() for x in made]).sum()


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        module(inputs()).backward()
        optimizer.step()
        optimizer.zero_grad()


def interrupted(wrap: Callable[[nn.Module], nn.Module]) -> tuple[dict[str, Tensor], ...]:
    """Five steps of two runs, the second of which starts with what was taken of the first.

    Returns:
        weights and the trainer's tensors at the end of the second.
    """
    state = None
    for count in (2, 3):
        module = wrap(Scaled())
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        if state is not None:
            trainer_state.set_trainer_state(module, optimizer, *state)
        steps(module, optimizer, count)
        # The first process has the whole, as a checkpoint would.
        parts = [trainer_state.get_trainer_state(module, optimizer)]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(parts, src=0)
        state = parts[0]
    assert state is not None
    return state[0], state[1]


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """Configuration without fields."""


class ToyModel(HubWeights):
    model_type = "toy"
    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.line = nn.Linear(2, 1)


class Toy(Task):
    """A line through points; a batch of a given number has a loss that is not finite."""

    def __init__(self, bad: Sequence[int] = ()):
        super().__init__()
        torch.manual_seed(1)
        self.model = ToyModel(ToyConfig())
        self.bad = set(bad)

    def training_step(
        self, batch: Batch, progress: float, embeddings: Sequence[Embeddings], micro_index: int
    ) -> StepOutput:
        loss = (self.model.line(batch["x"]) ** 2).mean()  # type: ignore[operator]
        number = int(batch["key"][0].split("-")[1])
        if number in self.bad:
            loss = loss + float("inf" if number % 2 else "nan")
        return StepOutput(loss, {"loss": loss})

    def validation_step(self, batch: Batch) -> Record:
        return {}

    def aggregate(self, records: Sequence[Record]) -> Mapping[str, float]:
        return {}

    def preprocessing(self) -> dict[str, Any]:
        return {}

    def flops_per_sample(self) -> float:
        return 12.0


class Batches:
    """A loader of so many batches; after ``breaks`` of them an error."""

    broken: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, count: int, breaks: int | None = None):
        self.count, self.breaks = count, breaks

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.count):
            if number == self.breaks:
                raise CavmaeError("the shard clips-000003.tar is damaged")
            g = torch.Generator().manual_seed(number)
            yield {"key": [f"clip-{number}"], "x": torch.randn(1, 2, generator=g)}

    def state_dict(self) -> dict[str, Any]:
        return {}


def loop_of(
    folder: Path,
    task: Toy,
    loader: Batches,
    steps: int = 8,
    accelerator: Accelerator | None = None,
) -> Trainer:
    settings = LoopSettings(
        steps=steps, log_every=1, save_every=0, save_minutes=0, tracker="none", max_bad_steps=3
    )
    (folder / "run").mkdir(exist_ok=True)
    accelerator = accelerator or Accelerator(cpu=True)
    run, optimizer = folder / "run", OptimizerSettings(lr=0.1)
    return Trainer(
        task, loader, None, RunLength(steps, 1, 1, None), settings, optimizer, run, accelerator,  # type: ignore[arg-type]
        DistEnv(),
    )  # fmt: skip


def apart(folder: Path) -> None:
    """Accelerators that would let each process train alone."""
    # Joins a process group, but counts one process: nobody says that processes are on the CPU.
    accelerator = Accelerator()
    rank = torch.distributed.get_rank()

    def join() -> None:
        with distributed_run(LoopSettings(tracker="none"), folder):
            pass

    def loop_on(device: str) -> None:
        accelerator.state.device = torch.device(device)
        loop_of(folder, Toy(), Batches(9), accelerator=accelerator)

    said = []
    for attempt in (lambda: loop_on("meta" if rank else "cpu"), lambda: loop_on("cpu"), join):
        try:
            attempt()
        except UsageError as error:
            said.append(str(error))
    (folder / f"{rank}.txt").write_text("\n".join(said))


def main(folder: Path, what: str) -> None:
    torch.set_num_threads(1)
    if what == "apart":
        apart(folder)
        return
    with distributed_run(LoopSettings(tracker="none"), folder) as accelerator:
        work(folder, what, accelerator)


def work(folder: Path, what: str, accelerator: Accelerator) -> None:
    processes = DistEnv()
    rank = processes.rank
    assert processes.count == 2
    if what == "contrasts":
        half = CLIPS // 2
        mine = {k: v[rank * half : (rank + 1) * half] for k, v in inputs().items()}
        outputs = contrasts(accelerator.prepare(Maps()), mine)
        save_file({k: v.contiguous() for k, v in outputs.items()}, folder / f"{rank}.safetensors")
        return
    if what == "sharded":
        weights, tensors = interrupted(fully_shard)
        save_file({**weights, **tensors}, folder / f"{rank}.safetensors")
        return
    loops = {
        "ran out": (Toy(), Batches(8 if rank else 4)),
        "broke": (Toy(), Batches(9, breaks=None if rank else 4)),
        # What is bad in one process only is left out in both.
        "some bad": (Toy([2, 5] if rank else []), Batches(9)),
        "all bad": (Toy([3, 4, 5, 6] if rank else []), Batches(9)),
    }
    loop = loop_of(folder, *loops[what])
    try:
        loop.train()
        end = f"done after {loop.step}, {loop.nonfinite.skipped} skipped"
    except CavmaeError as error:
        end = f"{loop.step}: {error}"
    (folder / f"{rank}.txt").write_text(end)
    weights = {k: v.detach().contiguous() for k, v in loop.task.state_dict().items()}
    save_file(weights, folder / f"{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
