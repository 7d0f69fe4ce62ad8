"""`cavmae plan --hours H --gpus N`: what a training of that size takes, by measured rates.

Imports no PyTorch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from cavmae.common.cli import module_main, output, parse_settings, parser
from cavmae.common.errors import UsageError
from cavmae.common.tables import markdown_table
from cavmae.datasets.sharding.settings import PROFILES, SHARD_BYTES, ShardSettings

MANIFEST_BYTES = 22  # of a sample with one label of 527
MANIFEST_MEMORY = 200  # bytes of that sample, once read
SHARD_RATE = {"events": 16.0, "speakers": 9.4}  # of the real clip; generated ones: 31 and 11
SAMPLE_MB = {"events": 0.585, "speakers": 1.92}
LOAD_RATE = {"events": 642.0, "speakers": 222.0}
STEP_RATE = 941.0
# Where the rates come from; docs/benchmarks has the runs.
SOURCES = {
    "shard_rate": "`cavmae bench shard --inputs`, a real 720p clip, a core of an EPYC",
    "sample_mb": "`cavmae shard`: frames of 224x224 (10 of `events`, 25/s of `speakers`), FLAC",
    "load_rate": "`cavmae bench load`, a core of a Xeon",
    "step_rate": "`cavmae bench pretrain --size base`, 10 s clips, bf16, batches of 256, one H100",
}


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """A data set, a cluster, and rates; rates of 0 are those measured, see docs/benchmarks.

    Args:
        hours: of video.
        profile: of `cavmae shard`.
        cores: for sharding.
        gpus: for training.
        epochs: of training.
        shard_rate: hours of video that a core makes shards of in an hour.
        sample_mb: size of a sample, in 10^6 bytes.
        load_rate: samples a second that a core loads.
        step_rate: samples a second that a GPU trains on.
        core_price: of an hour of a core, in any currency; 0: costs are left out.
        gpu_price: of an hour of a GPU.
        storage_price: of a month of 10^12 bytes.
    """

    hours: float = 0.0
    profile: Literal["events", "speakers"] = "events"
    cores: int = 64
    gpus: int = 8
    epochs: float = 25.0
    shard_rate: float = 0.0
    sample_mb: float = 0.0
    load_rate: float = 0.0
    step_rate: float = 0.0
    core_price: float = 0.0
    gpu_price: float = 0.0
    storage_price: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hours", "cores", "gpus", "epochs"):
            if getattr(self, name) <= 0:
                raise UsageError(f"--{name} must be above 0.")
        for name in ("shard_rate", "sample_mb", "load_rate", "step_rate"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name.replace('_', '-')} cannot be negative.")
        if min(self.core_price, self.gpu_price, self.storage_price) < 0:
            raise UsageError("Prices cannot be negative.")

    def rate(self, name: str) -> float:
        """A rate, as given or as measured."""
        measured = {
            "shard_rate": SHARD_RATE[self.profile], "sample_mb": SAMPLE_MB[self.profile],
            "load_rate": LOAD_RATE[self.profile], "step_rate": STEP_RATE,
        }  # fmt: skip
        return float(getattr(self, name) or measured[name])

    def source(self, name: str) -> str:
        """Where a rate comes from."""
        value = f"{self.rate(name):,g}"
        return f"{value}, as given" if getattr(self, name) else f"{value}: {SOURCES[name]}"


def main(words: Sequence[str]) -> int:
    """Prints what a data set and a training take.

    Raises:
        UsageError: an option is out of range.
    """
    cli = parser("plan", "Hours, sizes and costs of a data set and a training, by measured rates.")
    settings, _ = parse_settings(cli, PlanSettings, words)
    output(plan(settings))
    return 0


def plan(settings: PlanSettings) -> str:
    """Markdown table of amounts, each with what it rests on."""
    s = settings
    seconds = PROFILES[s.profile].clip_seconds
    samples = s.hours * 3600 / seconds
    terabytes = samples * s.rate("sample_mb") / 1e6
    of_shard = min(ShardSettings().shard_samples, SHARD_BYTES / s.rate("sample_mb") / 1e6)
    core_hours = s.hours / s.rate("shard_rate")
    epoch = samples / s.rate("step_rate") / 3600  # GPU hours
    needed = s.gpus * s.rate("step_rate")  # samples/s
    rows = [
        ("samples", f"{samples:,.0f}", f"of {seconds:g} s"),
        ("shards", f"{samples / of_shard:,.0f}", f"{of_shard:,.0f} samples of at most 256 MB"),
        ("storage", f"{terabytes:,.2f} TB", f"MB a sample: {s.source('sample_mb')}"),
        (
            "manifest",
            f"{samples * MANIFEST_BYTES / 1e6:,.0f} MB",
            f"{MANIFEST_BYTES} bytes a sample with one label",
        ),
        (
            "manifest in the memory of a process",
            f"{samples * MANIFEST_MEMORY / 1e6:,.0f} MB",
            f"{MANIFEST_MEMORY} bytes a sample with one label",
        ),
        ("sharding", f"{core_hours:,.1f} core hours", f"times real time: {s.source('shard_rate')}"),
        (f"sharding on {s.cores} cores", _time(core_hours / s.cores), "if storage keeps up"),
        ("an epoch", f"{epoch:,.2f} GPU hours", f"samples/s of a GPU: {s.source('step_rate')}"),
        (
            f"{s.epochs:g} epochs on {s.gpus} GPUs",
            _time(epoch * s.epochs / s.gpus),
            "one GPU measured; several taken as that many times as fast",
        ),
        ("loading", f"{needed:,.0f} samples/s", f"for {s.gpus} GPUs"),
        (
            "cores that load, for each GPU",
            f"{s.rate('step_rate') / s.rate('load_rate'):.1f}",
            f"samples/s of a core: {s.source('load_rate')}",
        ),
        (
            "read from storage, at most",
            f"{needed * s.rate('sample_mb') / 1e3:,.2f} GB/s",
            "while training",
        ),
    ]
    rows += _costs(s, core_hours, epoch * s.epochs, terabytes)
    return markdown_table(("", "amount", "rests on"), rows, (0, 2))


def _costs(
    settings: PlanSettings, core_hours: float, gpu_hours: float, terabytes: float
) -> list[tuple[str, str, str]]:
    prices = (
        ("sharding", core_hours, settings.core_price, "an hour of a core"),
        ("training", gpu_hours, settings.gpu_price, "an hour of a GPU"),
        ("a month of storage", terabytes, settings.storage_price, "a month of 1 TB"),
    )
    return [
        (f"cost of {name}", f"{amount * price:,.0f}", f"{price:g} for {unit}")
        for name, amount, price, unit in prices
        if price
    ]


def _time(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:,.0f} min"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"


if __name__ == "__main__":
    module_main(main)
