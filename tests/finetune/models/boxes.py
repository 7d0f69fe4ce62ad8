"""Models for a box of tests, exported as those of a release are."""

from pathlib import Path
from typing import Literal

from torch import nn

from cavmae.tools.export import ExportSettings
from cavmae.tools.publishing import export

TRAINED_ON = "rendered talkers, two of them at once"
EXPECT = "5 dB on such talkers, and nothing on others"


def export_model(
    trained: nn.Module,
    folder: Path,
    scratch: Path,
    precision: Literal["fp32", "fp16", "int8"] = "fp16",
    notes: str | None = None,
) -> Path:
    """Exports a model to a new folder; ``scratch`` takes its checkpoint."""
    checkpoint = scratch / "checkpoints" / "000000007"
    trained.save_pretrained(checkpoint)  # type: ignore[operator]
    (checkpoint / "preprocessing.json").write_text('{"fbank_mean": -6.0, "fbank_std": 4.0}')
    settings = ExportSettings(
        license="cc-by-4.0", trained_on=TRAINED_ON, expect=EXPECT, precision=precision, notes=notes
    )
    export(checkpoint, folder, settings)
    return folder
