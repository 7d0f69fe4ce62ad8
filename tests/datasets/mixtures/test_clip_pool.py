"""The index of clips: the same frames, masks and audio as the shards hold, in any order."""

import json
from pathlib import Path

import numpy as np
import pytest

from cavmae.common.errors import SampleError, ShardError, UsageError
from cavmae.datasets.format import sample
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.format.shards import Shard
from cavmae.datasets.mixtures.clip_pool import ClipPool, PoolClip
from cavmae.datasets.stream.shard_reader import Access
from tests.datasets.clips import clip, data_set_of
from tests.tools.helpers import samples_of


def test_the_pool_gives_the_content_of_the_shards(tmp_path: Path) -> None:
    manifest = data_set_of(tmp_path / "set", [clip(0), clip(1, masks=False)], [clip(2)])
    pool = ClipPool(manifest)
    assert [entry.key for entry in pool.clips] == ["k0", "k1", "k2"]
    assert pool.people() == {"s0": [0, 2], "s1": [1]}
    assert [entry.masked for entry in pool.clips] == [True, False, True]
    for number, file in ((2, "clips-000001.tar"), (1, "clips-000000.tar")):
        with Shard(tmp_path / "set" / file) as shard:
            members = dict(samples_of(shard))[f"k{number}"]
        entry = pool.clips[pool.index_of[f"k{number}"]]
        frames = pool.frames(entry, [2, 0, 2], grey=False)
        assert frames.shape == (3, 32, 48, 3)
        assert (frames[0] == frames[2]).all()
        assert (frames[1] == sample.decode_frame(members["000.jpg"])).all()
        grey = pool.frames(entry, [1], grey=True)
        colours = sample.decode_frame(members["001.jpg"])[None].astype(float)
        assert grey.shape == (1, 32, 48)
        assert np.abs(grey - colours @ [0.299, 0.587, 0.114]).mean() < 1
        assert (pool.masks(entry, [1])[0] == sample.decode_mask(members["001.png"], (32, 48))).all()
        whole = sample.decode_waveform(members["flac"], 0, 1920) / 32768
        np.testing.assert_allclose(pool.waveform(entry, 0.05, 900), whole[800:1700], atol=1e-7)
        late = pool.waveform(entry, 0.1, 900)  # silence follows its end
        np.testing.assert_allclose(late[:320], whole[1600:], atol=1e-7)
        assert not late[320:].any()
    with pytest.raises(SampleError, match="no mask 2"):
        pool.masks(pool.clips[1], [2])
    pool.close()


def test_frames_at_times_are_the_nearest() -> None:
    times = np.array([0.0, 0.04, 0.08, 0.5])
    _, members = clip(0)
    info = SampleInfo.from_bytes(members["json"])
    nothing = np.zeros((4, 2), dtype=np.int64)
    entry = PoolClip("k", 0, "s", info, times, nothing, nothing, (0, 0))
    asked = np.array([-1.0, 0.019, 0.021, 0.06, 0.3, 9.0])
    naive = [min(range(4), key=lambda n: (abs(times[n] - t) > min(abs(times - t)) + 1e-6, n))
             for t in asked]  # fmt: skip
    assert entry.frames_at(asked).tolist() == naive == [0, 0, 1, 1, 3, 3]


def test_what_is_of_no_use_is_left_out(tmp_path: Path) -> None:
    soundless = clip(3)
    del soundless[1]["flac"]
    noisy, silent = clip(1, labels=("noise",)), clip(2, labels=("silent",))
    manifest = data_set_of(tmp_path / "set", [clip(0), noisy, silent, soundless])
    pool = ClipPool(manifest)
    assert [entry.key for entry in pool.clips] == ["k0", "k2"]
    assert pool.left_out == 2
    assert [entry.silent for entry in pool.clips] == [False, True]
    assert len(ClipPool(manifest, exclude=()).clips) == 3
    unnamed = clip(5, speaker=None)
    assert list(ClipPool(data_set_of(tmp_path / "b", [unnamed])).people()) == ["v5.mp4"]
    with pytest.raises(UsageError, match="no clip to compose from: 1 left out"):
        ClipPool(data_set_of(tmp_path / "c", [noisy]))


def test_damage_raises_before_the_data_are_used(tmp_path: Path) -> None:
    manifest = data_set_of(tmp_path / "set", [clip(0), clip(2)])
    path = tmp_path / "set" / "clips-000000.tar"
    intact = path.read_bytes()
    pool = ClipPool(manifest)
    with path.open("r+b") as file:
        file.truncate(len(intact) - 4000)
    assert pool.frames(pool.clips[0], [0], grey=False).any()  # what is there can be read
    with pytest.raises(ShardError, match="ends inside k2: it has shrunk"):
        pool.waveform(pool.clips[1], 0, 10)
    path.write_bytes(intact[:900] + bytes([intact[900] ^ 4]) + intact[901:])
    with pytest.raises(ShardError):
        ClipPool(manifest)
    key, members = clip(0)
    members["json"] = json.dumps({"schema": 1}).encode()
    with pytest.raises(ShardError, match="bad_json"):
        ClipPool(data_set_of(tmp_path / "bad", [(key, members)]), Access("size"))
