"""Two real processes: what they compute together, and that none waits for one that failed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cavmae.common.errors import UsageError
from cavmae.pretrain.engine import checkpoints
from cavmae.pretrain.engine.run_setup import distributed_run
from cavmae.pretrain.engine.settings import LoopSettings
from tests.pretrain.engine.joined_process import (
    Batches,
    Maps,
    Scaled,
    Toy,
    contrasts,
    inputs,
    interrupted,
    loop_of,
    steps,
)
from tests.pretrain.engine.running import finish, launch, lines

SCRIPT = str(Path(__file__).with_name("joined_process.py"))


def run_two(folder: Path, what: str) -> None:
    for code, messages in finish(launch([SCRIPT, str(folder), what], 2), seconds=120):
        assert code == 0, messages


def two(folder: Path, what: str) -> list[dict[str, torch.Tensor]]:
    run_two(folder, what)
    return [load_file(str(folder / f"{rank}.safetensors")) for rank in range(2)]


def test_contrasts_of_two_processes_are_those_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    halves = two(tmp_path, "contrasts")
    whole = contrasts(Maps(), inputs())
    assert sum(name.startswith("gradient") for name in whole) == 8
    for name, value in whole.items():
        both = [half[name] for half in halves]
        if name.startswith("gradient"):  # DDP has averaged them
            torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)
            torch.testing.assert_close(both[0], value, rtol=1e-5, atol=1e-6)
        else:
            torch.testing.assert_close(sum(both) / 2, value, rtol=1e-5, atol=1e-6)


def test_processes_that_would_train_apart_end_at_once(tmp_path: Path) -> None:
    run_two(tmp_path, "apart")
    for rank in range(2):
        devices, gradients, count = (tmp_path / f"{rank}.txt").read_text().splitlines()
        assert "Some processes run on cpu, others on meta" in devices
        assert "Nothing averages the gradients of the 2 processes" in gradients
        assert "WORLD_SIZE says 2 processes, but 1 are joined in accelerate and 2 in" in count


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            "accelerate launch has started one process, but was asked for more",
        ),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS says 2 processes, but 1 are joined"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE 'two' is not a number of processes"),
        ({"ACCELERATE_USE_FSDP": "true"}, "needs GPUs"),
    ],
)
def test_launches_that_leave_processes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UsageError, match=said) as error,
        distributed_run(LoopSettings(tracker="none"), tmp_path),
    ):
        pass
    assert "launch" in str(error.value)


def test_runs_of_one_process_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell of several Slurm tasks, an address that no launcher has set."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with distributed_run(LoopSettings(tracker="none"), tmp_path) as accelerator:
        assert accelerator.num_processes == 1
        assert accelerator.device.type == "cpu"


def test_a_sharded_model_goes_on_as_a_whole_one(tmp_path: Path) -> None:
    """What is taken out of the parts that FSDP leaves each process, and put back into them."""
    ours, theirs = two(tmp_path, "sharded")
    weights, tensors = interrupted(lambda module: module)
    whole = {**weights, **tensors}
    assert ours.keys() == theirs.keys() == whole.keys()
    assert "optimizer.model.map.audio.weight.exp_avg_sq" in whole
    for name, value in whole.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    never = Scaled()
    steps(never, torch.optim.AdamW(never.parameters(), lr=0.01), 5)
    for name, value in never.model.state_dict().items():
        torch.testing.assert_close(weights[name], value)


@pytest.mark.parametrize(
    ("what", "steps_made", "messages"),
    [
        ("ran out", 4, ["Process 0 has run out of data at step 4"] * 2),
        ("broke", 4, ["the shard clips-000003.tar is damaged", "Another process could not go on"]),
    ],
)
def test_data_that_end_in_one_process_end_the_run_in_both(
    tmp_path: Path, what: str, steps_made: int, messages: list[str]
) -> None:
    two(tmp_path, what)
    for rank, text in enumerate(messages):
        end = (tmp_path / f"{rank}.txt").read_text()
        assert end.startswith(f"{steps_made}: ")
        assert text in end
    # What was learnt before is saved.
    assert [path.name for path in checkpoints.complete_checkpoints(tmp_path / "run")] == [
        f"{steps_made:09d}"
    ]


def test_a_step_that_is_bad_in_one_process_is_left_out_in_both(tmp_path: Path) -> None:
    ours, theirs = two(tmp_path, "some bad")
    assert (tmp_path / "1.txt").read_text() == "done after 8, 2 skipped"
    for name, value in ours.items():
        assert torch.equal(value, theirs[name])
        assert value.isfinite().all()
    messages = lines(tmp_path / "run")
    assert [line["skipped_steps"] for line in messages] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert messages[2]["loss"] is None


def test_bad_steps_in_a_row_end_the_run_with_the_clips_names(tmp_path: Path) -> None:
    two(tmp_path, "all bad")
    for rank in range(2):
        end = (tmp_path / f"{rank}.txt").read_text()
        assert "3 steps in a row" in end
        assert "clip-3; clip-4; clip-5; clip-3; clip-4; clip-5" in end


def test_a_bad_step_changes_nothing(tmp_path: Path) -> None:
    """Weights and moments of the optimizer are those of a run that never met it."""

    class Without(Batches):
        def __iter__(self):
            return (batch for batch in super().__iter__() if batch["key"] != ["clip-2"])

    with_bad = loop_of(tmp_path, Toy([2]), Batches(5), steps=5)
    with_bad.train()
    (tmp_path / "other").mkdir()
    without = loop_of(tmp_path / "other", Toy(), Without(5), steps=4)
    without._steps = 5  # the same schedule
    assert with_bad.nonfinite.skipped == 1
    rates = [line["lr"] for line in lines(tmp_path / "run")]
    # A rate belongs to a step: the four good ones are made with those of the other run.
    good = iter([rates[0], rates[1], rates[3], rates[4]])
    import cavmae.pretrain.engine.trainer as module

    original = module.learning_rate
    module.learning_rate = lambda *_: next(good)
    try:
        without._steps = 4
        without.train()
    finally:
        module.learning_rate = original
    for name, value in with_bad.task.state_dict().items():
        assert torch.equal(value, without.task.state_dict()[name])
