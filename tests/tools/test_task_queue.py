"""Queue of sharding tasks: the order of what begins, and the count of what is written."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cavmae.common.remote import DEFAULT_LIMITS
from cavmae.common.worker_pool import Finished, Lost, Restarted, TaskProgress
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.job_state import InputLayout
from cavmae.datasets.sharding.messages import InputSurvey, Message, Seam, Stretch, Written
from cavmae.datasets.sharding.settings import ShardSettings
from cavmae.datasets.sharding.task_queue import ShardTask, TaskQueue

CLIP = Written(0, 0.0, 2.5, 1, 0)


def script(task: ShardTask, stretches: int, agree: bool) -> Iterator[Message]:
    """Messages of a task: a survey, a stretch of one clip, or an input of as many clips."""
    if task.assigned is not None:
        number = task.assigned[1].number
        yield CLIP
        if number:
            yield Seam(CLIP)
        if number < stretches - 1:
            yield Seam(CLIP if agree else CLIP._replace(crc=1))
    elif stretches and task.stretch_seconds:
        yield InputSurvey(None, (0, 0), task.part.with_suffix(".audio"), ())  # type: ignore[arg-type]
        for number in range(stretches):
            yield Stretch(number, (), number == stretches - 1)
    else:
        yield from [CLIP] * max(stretches, 1)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 4),
    st.sets(st.integers(1, 30)),
    st.sets(st.integers(1, 30)),
    st.randoms(use_true_random=False),
)
def test_no_input_begins_beside_the_awaited_one_and_all_end(
    inputs: list[tuple[int, bool]], workers: int, lost: set[int], again: set[int], rng: Any
) -> None:
    """Inputs of several stretches whose clips agree or not; tasks that are lost or begin again."""
    ended: set[int] = set()

    def awaited() -> int | None:
        """The first input that has not ended, if a later one has."""
        first = min({*range(len(inputs))} - ended, default=len(inputs))
        return first if first < max(ended, default=0) else None

    items = [(n, Input(f"{n}.mp4")) for n in range(len(inputs))]
    settings = ShardSettings().resolved()
    layout = InputLayout(Path("nowhere"))
    queue = TaskQueue(layout, items, settings, DEFAULT_LIMITS, 1.0, awaited)
    tasks = queue.tasks()
    begun: set[int] = set()
    running: dict[int, tuple[int, Iterator[Message]]] = {}
    restarts: dict[int, ShardTask] = {}
    kept = 0
    more = True
    while more or running:
        while more and len(running) < workers:
            of = {number for number, _ in running.values()}
            entry = next(tasks, ())
            if entry == ():
                more = False
            if not entry:
                assert not more or running  # there is something to wait for
                break
            number = int(Path(entry[1].item.source).stem)
            assert number in begun or awaited() not in of
            begun.add(number)
            running[entry[0]] = number, script(entry[1], *inputs[number])
            if entry[0] in again:
                restarts[entry[0]] = entry[1]
        if not running:
            continue
        task = rng.choice(sorted(running))
        number, messages = running[task]
        if task in restarts and rng.random() < 0.5:
            queue.handle(Restarted(task, "killed"))
            running[task] = number, script(restarts.pop(task), *inputs[number])
            continue
        message = next(messages, None)
        if message is not None and task not in lost:
            queue.handle(TaskProgress(task, message))
            continue
        del running[task]
        event = Lost(task, "crash", "") if task in lost else Finished(task, None)
        done = queue.handle(event)
        if done is not None:
            assert done.number == number and number not in ended
            ended.add(number)
            kept += sum(isinstance(m, Written) for m in done.messages)
            if not lost:
                assert done.messages == [CLIP] * max(inputs[number][0], 1)  # each clip once
    assert ended == {*range(len(inputs))}
    assert queue.clips == kept and queue.seconds == kept * CLIP.seconds


def test_what_a_killed_process_has_fetched_is_removed_before_its_task_begins_again(
    tmp_path: Path,
) -> None:
    items = [(n, Input(f"{n}.mp4")) for n in range(2)]
    layout = InputLayout(tmp_path)
    queue = TaskQueue(layout, items, ShardSettings().resolved(), DEFAULT_LIMITS, None)
    tasks = list(itertools.islice(queue.tasks(), 2))
    copies = [Path(f"{task.part.with_suffix('')}.input-x") for _, task in filter(None, tasks)]
    for copy in copies:
        copy.mkdir(parents=True)
    queue.handle(Restarted(1, "killed"))
    assert [copy.exists() for copy in copies] == [False, True]
