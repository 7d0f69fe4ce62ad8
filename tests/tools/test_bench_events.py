"""`cavmae bench finetune --task events`: a row for each temporal attention, the wait for data."""

import json
import re
from pathlib import Path

import pytest

from cavmae.common.errors import UsageError
from cavmae.pretrain.temporal.settings import TEMPORAL
from cavmae.tools.bench import main
from cavmae.tools.benchmarks import event_training
from cavmae.tools.benchmarks.settings import FinetuneBench
from tests.finetune.events.event_clips import ENCODER, event_set, several


def test_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, since a fresh one for every number takes long."""

    def in_turns(ways: dict, rounds: int, **_: bool) -> dict:  # type: ignore[type-arg]
        return {title: (call(*arguments), 100.0) for title, (call, arguments) in ways.items()}

    monkeypatch.setattr(event_training, "in_turns", in_turns)
    monkeypatch.setattr(event_training, "STEPS_WITH_WORKERS", 1)
    monkeypatch.setattr(event_training, "CONFIGS", tmp_path)
    (tmp_path / "small-set.yaml").write_text(json.dumps({"model": {"encoder": ENCODER}}))
    shards = event_set(tmp_path / "clips", several(4)).folder
    out = tmp_path / "rows.json"
    command = f"finetune --task events --data-set {shards} --batch-size 1 --steps 1 --frames 2"
    variant = "--model.pooling attention --data.roll 0"
    words = [*command.split(), "--variants", f"[{variant}]", "--workers", "1", "--device", "cpu"]
    assert main([*words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    table = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    names = list(TEMPORAL)
    steps = ["training step, 1 frame", *(f"training step, 2 frames, {name}" for name in names)]
    steps.append(f"training step, 1 frame, {variant}")
    passes = ["2 passes, averaged", *(f"one pass, {name}" for name in names)]
    assert [row for row in table if row != "way" and "---" not in row] == [
        *steps, "loading, one core", *passes,
    ]  # fmt: skip
    line = re.search(r"With 1 workers: (\S+) clips/s in training, (\d+)% of the time", printed)
    assert line is not None and float(line[1]) > 0 and int(line[2]) <= 100
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == len(steps) + 1 + len(passes) and all(row["seconds"] > 0 for row in rows)


def test_options_of_the_other_task() -> None:
    with pytest.raises(UsageError, match="--size is no option of --task events"):
        FinetuneBench(task="events", size="base")
    with pytest.raises(UsageError, match="--frames is no option of --task speakers"):
        FinetuneBench(frames=4)
    with pytest.raises(UsageError, match="--workers and --frames are at least 1"):
        FinetuneBench(workers=0)
