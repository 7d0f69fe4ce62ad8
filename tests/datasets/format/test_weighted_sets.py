"""Data sets with weights as options name them, and what cannot be mixed."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.weighted_sets import WeightedSet, check_mixable, weighted_sets
from cavmae.datasets.sharding.settings import ShardSettings


def test_forms_of_the_option() -> None:
    assert weighted_sets("", "data.train") == ()
    assert weighted_sets([], "data.train") == ()
    assert weighted_sets("a/b", "data.train") == (WeightedSet("a/b", 1.0),)
    assert weighted_sets([{"path": "a", "weight": 3}, "s3://b", {"path": "c"}], "data.train") == (
        WeightedSet("a", 3.0), WeightedSet("s3://b", 1.0), WeightedSet("c", 1.0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        *(
            ([{"path": "a", "weight": weight}], "of a is not a number above 0")
            for weight in (0, -1.5, math.inf, math.nan, "2", True)
        ),
        ([{"weight": 2}], "is no data set"),
        ([{"path": "a", "wieght": 2}], "is no data set"),
        ([{"path": 3.0}], "quotes around a path that is a number"),
        ([""], "is no data set"),
        (["a", {"path": "./a/", "weight": 2}], r"names the data set \./a/ twice"),
        (["a", "a/manifest.json"], "twice"),
        (["a", "a"], "twice"),  # equal one-letter strings are one object
        (["manifest.json", "."], "twice"),
        (["s3://x/a", "s3://x/a/"], "twice"),
    ],
)
def test_what_is_refused(value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        weighted_sets(value, "data.train")
    assert str(error.value).startswith("data.train")


def test_a_link_to_a_data_set_is_that_data_set(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(UsageError, match="twice"):
        weighted_sets([str(tmp_path / "a"), str(tmp_path / "link")], "data.train")


def manifest(folder: str, **settings: Any) -> Manifest:
    return Manifest(folder, (), dataclasses.asdict(ShardSettings(**settings).resolved()))


def test_samples_that_lack_what_others_have() -> None:
    events, speakers = manifest("e", profile="events"), manifest("s", profile="speakers")
    silent, unknown = manifest("q", waveform=False), Manifest("u", (), {})
    check_mixable([events, speakers, silent, unknown], waveforms=False, motion=False)
    check_mixable([events, speakers, unknown], waveforms=True, motion=False)
    check_mixable([events, silent, unknown], waveforms=False, motion=True)  # alike, if slow
    check_mixable([silent], waveforms=True, motion=True)  # one data set is no mixture
    with pytest.raises(UsageError, match="e has waveforms, q has none"):
        check_mixable([events, silent], waveforms=True, motion=False)
    with pytest.raises(UsageError, match=r"s has 25 frames a second, e has 1, .* latter"):
        check_mixable([events, speakers], waveforms=True, motion=True)
