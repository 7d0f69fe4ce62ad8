"""A run on several data sets that was stopped makes the steps of one never stopped."""

import json
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cavmae.datasets.format.manifest import Manifest
from cavmae.pretrain.engine import checkpoints
from tests.finetune.events.event_clips import event_set
from tests.pretrain.engine.running import finish, lines, trace, train, wait_for, words


@pytest.mark.long
def test_a_run_on_two_data_sets_goes_on_to_the_bit(tmp_path: Path, data_set: Manifest) -> None:
    """Clips of other sizes, lengths and labels; epochs of the small data set end within the run."""
    other = event_set(tmp_path / "other", [("rain",)] * 5)
    mixture = json.dumps([{"path": data_set.folder, "weight": 1}, {"path": other.folder}])
    whole, run = tmp_path / "whole", tmp_path / "run"
    data = {"workers": 1, "batch_size": 4}
    commands = [
        [*words(tmp_path, folder, data_set.folder, data=data), "--data.train", mixture]
        for folder in (whole, run)
    ]
    started = train(commands[0])
    ((code, stderr),) = finish(started)
    assert code == 0, stderr
    started = train(commands[1])
    wait_for(lambda: any(line["step"] == 3 for line in lines(run)), started)
    os.kill(started[0].pid, signal.SIGTERM)
    ((code, stderr),) = finish(started)
    assert code == 0, stderr
    last = checkpoints.complete_checkpoints(run)[-1]
    assert int(last.name) < 8
    (rank,) = checkpoints.load(last).trainer["ranks"]
    assert rank["loader"]["data_sets"][1]["positions"][0]["epoch"] >= 1
    ((code, stderr),) = finish(train([*commands[1], "--resume", "auto"]))
    assert code == 0, stderr
    assert trace(run) == trace(whole)
    assert trace(run)[-2]["epoch"] == 8 * 4 // (24 + 5)
    ends = [checkpoints.complete_checkpoints(folder)[-1] for folder in (run, whole)]
    weights = [load_file(str(end / "model.safetensors")) for end in ends]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
