"""`cavmae plan`: its arithmetic, by hand."""

import pytest

from cavmae.common.errors import UsageError
from cavmae.tools.plan import PlanSettings, main, plan


def cells(settings: PlanSettings) -> dict[str, tuple[str, str]]:
    rows = [line.strip("| ").split(" | ") for line in plan(settings).splitlines()[2:]]
    return {name: (amount, source) for name, amount, source in rows}


def test_amounts_follow_from_rates() -> None:
    rates = {"shard_rate": 20.0, "sample_mb": 0.5, "load_rate": 400.0, "step_rate": 1000.0}
    prices = {"core_price": 0.1, "gpu_price": 3.0, "storage_price": 20.0}
    table = cells(PlanSettings(hours=10_000, cores=100, gpus=4, epochs=10, **rates, **prices))
    assert table["samples"] == ("3,600,000", "of 10 s")
    assert table["shards"][0] == "7,031"  # 512 of 0.5 MB are 256 MB
    assert table["storage"] == ("1.80 TB", "MB a sample: 0.5, as given")
    assert table["sharding"][0] == "500.0 core hours"
    assert table["sharding on 100 cores"][0] == "5.0 h"
    assert table["an epoch"][0] == "1.00 GPU hours"
    assert table["10 epochs on 4 GPUs"][0] == "2.5 h"
    assert table["cores that load, for each GPU"][0] == "2.5"
    assert table["read from storage, at most"][0] == "2.00 GB/s"
    assert [table[f"cost of {x}"][0] for x in ("sharding", "training")] == ["50", "30"]
    assert table["cost of a month of storage"][0] == "36"


def test_measured_rates_are_named_and_costs_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--hours", "5000", "--gpus", "64", "--profile", "speakers"]) == 0
    said = capsys.readouterr().out
    assert "| 3,515,625 | of 5.12 s |" in said
    assert "941: `cavmae bench pretrain --size base`" in said and "cost" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--hours must be above 0"),
        (["--hours", "1", "--gpus", "0"], "--gpus must be above 0"),
        (["--hours", "1", "--step-rate", "-1"], "--step-rate cannot be negative"),
        (["--hours", "1", "--gpu-price", "-1"], "Prices cannot be negative"),
    ],
)
def test_plans_of_nothing(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        main(words)
