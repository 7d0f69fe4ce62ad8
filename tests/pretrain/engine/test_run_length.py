"""Length and progress of runs whose steps change their size."""

from hypothesis import given
from hypothesis import strategies as st

from cavmae.pretrain.engine.run_length import RunLength


@given(st.integers(1, 50), st.integers(1, 2000), st.integers(1, 9))
def test_even_runs_count_steps(step_samples: int, epoch_samples: int, epochs: int) -> None:
    total = epochs * epoch_samples
    steps = max(1, round(total / step_samples))
    length = RunLength(steps, step_samples, epoch_samples, total)
    for step in range(steps):
        assert length.progress(step, step * step_samples) == step / steps
        assert length.last_step(step, step * step_samples) == steps


@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(1, 30)), min_size=2, max_size=5),
    st.integers(100, 5000),
)
def test_a_run_of_epochs_ends_with_its_samples(runs: list[tuple[int, int]], total: int) -> None:
    """Runs of (samples of a step, steps); the last one goes on to the end."""
    step = samples = 0
    progress = 0.0
    for number, (size, count) in enumerate(runs):
        length = RunLength(max(1, round(total / size)), size, total, total)
        end = length.last_step(step, samples)
        for _ in range(end - step if number == len(runs) - 1 else min(count, end - step)):
            before, progress = progress, length.progress(step, samples)
            assert before <= progress <= 1
            step, samples = step + 1, samples + size
    assert abs(samples - total) <= max(size for size, _ in runs)


def test_a_number_of_steps_is_that_number_whatever_their_size() -> None:
    length = RunLength(100, 8, 1000, None)
    assert length.last_step(40, 123) == 100
    assert length.progress(40, 123) == 0.4
