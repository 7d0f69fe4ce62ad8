"""Balance of the parts of a data set, by seconds where they are known and by bytes elsewhere."""

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae.common import listings
from cavmae.common.listings import listed_sizes
from cavmae.datasets.sharding.balance import BYTES_PER_SECOND, balanced_shares, work_of
from cavmae.datasets.sharding.inputs import Input
from tests.object_store import ObjectStore


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1, 8))
def test_shares_are_balanced(sizes: list[int], count: int) -> None:
    named = [(f"{n:03d}", float(size)) for n, size in enumerate(sizes)]
    shares = balanced_shares(named, count)
    assert shares == balanced_shares(named[::-1], count)
    assert shares.keys() == dict(named).keys() and {*shares.values()} <= {*range(1, count + 1)}
    loads = [sum(size for name, size in named if shares[name] == p + 1) for p in range(count)]
    # The last input of the largest part came when no part was larger than the mean of the others.
    assert max(loads) <= sum(sizes) / count + max(sizes) * (1 - 1 / count) + 1e-9
    numbers = [sum(part == p + 1 for part in shares.values()) for p in range(count)]
    if len({*sizes}) == 1:
        assert max(numbers) - min(numbers) <= 1


def loads_of(items: list[Input], count: int) -> list[float]:
    """Seconds of each part, of inputs that all have an end."""
    shares = balanced_shares(work_of(items), count)
    loads: dict[int, float] = defaultdict(float)
    for item in items:
        assert item.end is not None
        loads[shares[item.identity]] += item.end - (item.start or 0.0)
    return sorted(loads.values())


@pytest.mark.parametrize("source", ["https://host/long.mp4", "missing.mp4", ""])
def test_stretches_of_a_file_count_their_seconds(tmp_path: Path, source: str) -> None:
    """An hour beside a thousand seconds, whether the file is here, elsewhere or missing."""
    path = tmp_path / "long.mp4"
    with path.open("wb") as file:
        file.truncate(900_000_000)
    source = source or str(path)
    items = [Input(source, start=0.0, end=3600.0)]
    items += [Input(source, start=float(n), end=n + 1.0) for n in range(1000)]
    assert loads_of(items, 2) == [1000.0, 3600.0]
    assert loads_of(items[1:], 3) == [333.0, 333.0, 334.0]


def test_whole_files_beside_stretches(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with path.open("wb") as file:
        file.truncate(100 * BYTES_PER_SECOND)
    items = [
        Input(str(path)), Input(f"file://{path}", start=30.0), Input(str(path), end=20.0),
        Input(str(path), start=10.0, end=1e9), Input(str(path), start=1e6),
        Input("http://host/a.mp4"),
    ]  # fmt: skip
    work = work_of(items)
    assert [identity for identity, _ in work] == [item.identity for item in items]
    # An end beyond what the file can hold is none; an unknown input is as long as the others.
    assert [seconds for _, seconds in work] == [100.0, 70.0, 20.0, 2490.0, 0.0, 2680.0 / 5]
    assert [seconds for _, seconds in work_of(items[-1:])] == [1.0]


def test_sizes_at_a_store_are_listed_not_asked_for(
    s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of a folder from the first wanted name to the last, while they have enough of those."""
    sizes = {f"{n:03d}.mp4": 10 + n for n in range(30)}
    for name, size in sizes.items():
        s3.system.pipe_file(f"clips/set/{name}", b"x" * size)
    s3.system.pipe_file("clips/set/inner/030.mp4", b"")
    s3.requests.clear()
    wanted = [f"s3://clips/set/{n:03d}.mp4" for n in (5, 20, 21)]
    others = ["s3://clips/set/gone.mp4", "s3://none/a/b.mp4", "https://h/a.mp4", "s3://clips"]
    expected = {url: sizes[url.rpartition("/")[2]] for url in wanted}
    assert listed_sizes([*wanted, *others]) == expected
    assert [r.method for r in s3.requests] == ["GET", "GET"]  # one for each folder
    work = dict(work_of([Input(url) for url in wanted]))
    assert work[Input(wanted[2]).identity] == (10 + 21) / BYTES_PER_SECOND
    monkeypatch.setattr(listings, "PAGE", 10)
    s3.requests.clear()
    assert listed_sizes(wanted) == expected
    assert len(s3.requests) == 2  # 005 to 014, 015 to 024
    monkeypatch.setattr(listings, "LEAST_PAGES", 1)
    assert listed_sizes(wanted) == {wanted[0]: 15}
