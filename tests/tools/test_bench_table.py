"""Tables of benchmarks mark a way that could not be measured and keep the other rows."""

import math

from cavmae.tools.benchmarks.table import Row, row_of, table


def test_a_way_without_enough_memory_leaves_the_others_their_figures() -> None:
    rows = [row_of("base", math.inf, 9e9), row_of("ours", 0.5, 100.0, "fast")]
    assert rows[0] == Row("base", None, None, "out of memory")
    lines = table("title", "clip", "base", rows).splitlines()
    assert lines[-2] == "| base | - | - | - | - | out of memory |"
    assert lines[-1] == "| ours | 500 | 2 | - | 100 MB | fast |"
    assert "| 0.5 | 100 MB |" in table("", "clip", "base", [Row("base", 1.0), rows[1]])
