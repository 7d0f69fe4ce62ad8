"""Work whose module is imported by its processes alone."""

import sys
from typing import Any

from cavmae.common import worker_pool


@worker_pool.with_modules("colorsys")
def has_module(argument: int, report: Any) -> bool:
    return "colorsys" in sys.modules
