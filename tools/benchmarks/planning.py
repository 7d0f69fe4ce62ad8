"""`cavmae bench plan`: time and memory from an input list to the plan of a sharding run."""

import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cavmae.datasets.sharding.input_plan import Plan
from cavmae.datasets.sharding.job import select_inputs
from cavmae.datasets.sharding.job_state import InputLayout
from cavmae.datasets.sharding.parts import share_of
from cavmae.datasets.sharding.settings import ShardRunSettings
from cavmae.tools.benchmarks.settings import PlanBench
from cavmae.tools.benchmarks.table import Row, in_turns, on_one_core, save, table

BASELINE = "the list read by csv.reader alone"
ROWS_OF_FILE = 5
FOLDERS, CLASSES, SPEAKERS = 20, 527, 7000


def make_list(path: Path, rows: int) -> Path:
    """Write a table of stretches of files that need not exist, with one to three labels each."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "labels", "speaker"])
        for row in range(rows):
            number, start = row // ROWS_OF_FILE, 10 * (row % ROWS_OF_FILE) + rng.random()
            labels = ";".join(f"class {n:03d}" for n in rng.integers(CLASSES, size=1 + row % 3))
            writer.writerow(
                [
                    f"{number % FOLDERS:02d}/clip-{number:07d}.mp4", f"{start:.3f}",
                    f"{start + 10:.3f}", labels, f"speaker {number % SPEAKERS:04d}",
                ]
            )  # fmt: skip
    return path


def read_rows(path: Path) -> float:
    """CPU seconds per row of reading a table."""
    started = time.process_time()
    with path.open(newline="") as file:
        rows = sum(1 for _ in csv.reader(file)) - 1
    return (time.process_time() - started) / rows


def plan_rows(path: Path, rows: int, out: Path | None, part: tuple[int, int] | None) -> float:
    """CPU seconds per row of planning a table, until the first input could be extracted.

    Args:
        path: of the table.
        rows: number of its rows.
        out: folder of the data set; None: a new one.
        part: (I, N) of :class:`~cavmae.datasets.sharding.job_state.InputLayout`.
    """
    with tempfile.TemporaryDirectory() as fresh:
        folder = out or Path(fresh)
        started = time.process_time()
        items = select_inputs([str(path)], ShardRunSettings())
        if part is not None:
            items = share_of(items, part, folder)
        Plan(InputLayout(folder, part=part)).extend(items)
        return (time.process_time() - started) / rows


def run(bench: PlanBench) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        work, part = Path(temporary), (1, bench.parts)
        path = make_list(work / "list.csv", bench.rows)
        for name, of in (("whole", None), ("parts", part)):
            (work / name).mkdir()
            on_one_core(plan_rows, path, bench.rows, work / name, of)
        ways: dict[str, tuple[Callable[..., float], tuple[Any, ...]]] = {
            BASELINE: (read_rows, (path,)),
            "first plan": (plan_rows, (path, bench.rows, None, None)),
            "the same list again": (plan_rows, (path, bench.rows, work / "whole", None)),
            f"first plan of part 1/{bench.parts}": (
                plan_rows, (path, bench.rows, None, part)
            ),
            f"part 1/{bench.parts} again": (plan_rows, (path, bench.rows, work / "parts", part)),
        }  # fmt: skip
        results = in_turns(ways, bench.rounds)
    rows = [
        Row(name, seconds, peak, f"{seconds * bench.rows:.2f} s")
        for name, (seconds, peak) in results.items()
    ]
    title = f"cavmae bench plan: {bench.rows} rows, CPU time of one core"
    print(table(title, "row", BASELINE, rows))
    save(rows, bench.out)
