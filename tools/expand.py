"""`cavmae expand --config x3d --out FOLDER --budget-gmacs G`: grows a motion pathway (X3D)."""

from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import module_main, named_config, parse_settings, parser
from cavmae.tools.expanding.settings import ExpandSettings

CONFIGS = Path(__file__).parent / "expanding" / "configs"


def main(words: Sequence[str]) -> int:
    """Expands a motion pathway axis by axis under a budget.

    Raises:
        CavmaeError: see :func:`cavmae.tools.expanding.run.run`.
    """
    cli = parser("expand", "Grows a motion pathway axis by axis under a budget, as X3D was.")
    settings, _ = parse_settings(cli, ExpandSettings, named_config(words, CONFIGS))
    from cavmae.tools.expanding.run import run

    run(settings)
    return 0


if __name__ == "__main__":
    module_main(main)
