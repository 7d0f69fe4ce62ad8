"""`cavmae bench temporal`: a row for each attention, a column for each number of frames."""

import json
from pathlib import Path

import pytest

from cavmae.common.errors import UsageError
from cavmae.pretrain.temporal.settings import TEMPORAL
from cavmae.tools.bench import main
from cavmae.tools.benchmarks import temporal
from cavmae.tools.benchmarks.settings import TemporalBench


def test_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, since a fresh one for every number takes long."""

    def in_turns(ways: dict, rounds: int, gpu: bool) -> dict:  # type: ignore[type-arg]
        return {title: (call(*arguments), 100.0) for title, (call, arguments) in ways.items()}

    monkeypatch.setattr(temporal, "in_turns", in_turns)
    out = tmp_path / "rows.json"
    command = f"temporal --steps 1 --image 32 --frames [1,2] --device cpu --out {out}"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    table = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    assert table[2:] == list(TEMPORAL)
    assert "1 frame " in printed and "2 frames" in printed and "(1.00), 100 MB" in printed
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 2 * len(list(TEMPORAL)) and all(row["seconds"] > 0 for row in rows)
    with pytest.raises(UsageError, match="--frames"):
        TemporalBench(frames=())
