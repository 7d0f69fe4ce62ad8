"""Length, epochs and progress of runs, with any processes, batches and accumulation."""

import dataclasses
import math
from typing import NamedTuple

from hypothesis import assume, given
from hypothesis import strategies as st

from cavmae.pretrain.engine.run_length import RunLength
from cavmae.pretrain.engine.settings import LoopSettings, OptimizerSettings


@dataclasses.dataclass(frozen=True)
class Data:
    batch_size: int


class Launch(NamedTuple):
    """A launch of a run: ``batch_size``, ``grad_accum_steps``, processes."""

    batch: int
    accumulated: int
    processes: int

    @property
    def step_samples(self) -> int:
        return self.batch * self.accumulated * self.processes

    def length(self, samples: int, **loop: float) -> RunLength:
        return RunLength.of(_settings(self, **loop), samples, self.processes)


@dataclasses.dataclass(frozen=True)
class Settings:
    data: Data
    loop: LoopSettings
    optimizer: OptimizerSettings = OptimizerSettings()


def _settings(launch: Launch, **loop: float) -> Settings:
    return Settings(Data(launch.batch), LoopSettings(grad_accum_steps=launch.accumulated, **loop))  # type: ignore[arg-type]


launches = st.builds(Launch, st.integers(1, 9), st.integers(1, 4), st.integers(1, 6))
epochs = st.one_of(st.integers(1, 6).map(float), st.floats(0.05, 6.0))


@given(launches, launches, st.integers(1, 3000), epochs, st.integers(1, 500))
def test_only_the_samples_of_a_step_count(
    launch: Launch, other: Launch, samples: int, epochs: float, steps: int
) -> None:
    """Eight clips of one process are two each of two processes that accumulate twice."""
    merged = Launch(launch.step_samples, 1, 1)
    assert launch.length(samples, epochs=epochs) == merged.length(samples, epochs=epochs)
    length = launch.length(samples, epochs=epochs)
    for step in range(min(length.steps, 50)):
        used = step * launch.step_samples
        assert length.epoch(used) == other.length(samples, epochs=epochs).epoch(used)
    # A number of steps is that number, of whatever size.
    assert launch.length(samples, steps=steps).steps == other.length(samples, steps=steps).steps


@given(launches, st.integers(1, 3000), epochs)
def test_a_run_ends_with_the_step_that_uses_its_last_sample(
    launch: Launch, samples: int, epochs: float
) -> None:
    length = launch.length(samples, epochs=epochs)
    total = max(1, round(epochs * samples))
    step = used = 0
    while used < total:  # by counting
        step, used = step + 1, used + launch.step_samples
    assert length.steps == step
    assert length.last_step(0, 0) == length.last_step(step, used) == step
    assert length.epoch(used) >= math.floor(epochs)
    assert [length.progress(n, n * launch.step_samples) for n in (0, step)] == [0, 1]


@given(launches, st.integers(1, 3000), st.integers(1, 6))
def test_each_epoch_ends_in_a_single_step(launch: Launch, samples: int, epochs: int) -> None:
    assume(launch.step_samples <= samples)
    length = launch.length(samples, epochs=float(epochs))
    over = [length.epoch(step * launch.step_samples) for step in range(length.steps + 1)]
    ends = [n for n in range(length.steps) if over[n + 1] > over[n]]
    assert len(ends) == epochs
    for number, step in enumerate(ends, 1):  # the first step after which its samples are used
        assert step * launch.step_samples < number * samples <= (step + 1) * launch.step_samples


@given(
    st.lists(st.tuples(launches, st.integers(1, 30)), min_size=2, max_size=5),
    st.integers(100, 2000),
    epochs,
)
def test_a_run_resumed_with_other_processes_ends_with_the_same_samples(
    runs: list[tuple[Launch, int]], samples: int, epochs: float
) -> None:
    """Runs of (launch, steps); the last one goes on to the end."""
    total = max(1, round(epochs * samples))
    step = used = 0
    progress = 0.0
    ended = []
    for number, (launch, count) in enumerate(runs):
        length = launch.length(samples, epochs=epochs)
        end = length.last_step(step, used)
        for _ in range(end - step if number == len(runs) - 1 else min(count, end - step)):
            before, progress = progress, length.progress(step, used)
            assert before <= progress <= 1
            epoch = length.epoch(used)
            step, used = step + 1, used + launch.step_samples
            ended += range(epoch + 1, length.epoch(used) + 1)
    assert total <= used < total + max(launch.step_samples for launch, _ in runs)
    assert ended == list(range(1, used // samples + 1))  # each once, and in order


def test_progress_does_not_fall_where_sizes_of_steps_happen_to_agree() -> None:
    """19 steps of 36 samples and 11 of 6 are as many as 30 of 25."""
    before = Launch(1, 1, 6).length(751, epochs=1.0).progress(29, 744)
    assert before < Launch(5, 1, 5).length(751, epochs=1.0).progress(30, 750) < 1


def test_a_number_of_steps_is_that_number_after_a_change_of_their_size() -> None:
    length = RunLength(100, 8, 1000, None)
    assert length.last_step(40, 123) == 100
    assert length.progress(40, 123) == 0.4
