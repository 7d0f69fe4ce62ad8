"""Ranks against a naive loop, features against the model, the command on real shards."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from cavmae.common.cli import run
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.retrieval import Features, ranks, recall_metrics, retrieval
from cavmae.tools.retrieve import main

SHAPE = CAVMAEConfig(
    image_height=32, image_width=32, audio_frames=96, width=16, heads=2, depth=1,
    decoder_width=8, decoder_heads=2, decoder_depth=1,
)  # fmt: skip


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_ranks_against_a_naive_loop(count: int, block: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    # Whole numbers: products are exact, and some are equal.
    queries, gallery = (torch.randint(-2, 3, (count, 3), generator=rng).float() for _ in range(2))
    computed = ranks(queries, gallery, block)
    for n in range(count):
        similar = [float(queries[n] @ g) for g in gallery]
        better = sum(s > similar[n] for s in similar)
        same = sum(s == similar[n] for s in similar)
        assert computed[n] == better + (same + 1) / 2


def test_features_that_are_all_the_same_are_as_good_as_chance() -> None:
    same = torch.ones(101, 4)
    scores = recall_metrics(ranks(same, same))
    assert scores == {
        "recall_at_1": 0.0,
        "recall_at_5": 0.0,
        "recall_at_10": 0.0,
        "median_rank": 51.0,
    }


def test_partners_find_each_other() -> None:
    torch.manual_seed(0)
    audio = torch.nn.functional.normalize(torch.randn(50, 16), dim=1)
    scores = retrieval(Features([str(n) for n in range(50)], audio, audio.clone()))
    assert scores["video_to_audio"]["recall_at_1"] == scores["audio_to_video"]["recall_at_1"] == 1
    assert scores["chance"] == {
        "recall_at_1": 0.02,
        "recall_at_5": 0.1,
        "recall_at_10": 0.2,
        "median_rank": 25.5,
    }


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
def test_the_command(
    tmp_path: Path, data_set: Manifest, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Features are those of the model on the clips themselves, each clip once."""
    torch.manual_seed(0)
    model = CAVMAE(SHAPE)
    model.save_pretrained(tmp_path / "model")
    out, figures = tmp_path / f"features{ending}", tmp_path / "figures.json"
    words = [str(tmp_path / "model"), data_set.folder, "--features", str(out)]
    words += ["--statistics", "audioset", "--json", str(figures), "--batch-size", "5"]
    assert run(main, words) == 0
    assert "video_to_audio" in capsys.readouterr().out
    keys = out.with_suffix(".keys.txt").read_text().split()
    assert len(set(keys)) == len(keys) == data_set.samples
    if ending == ".npy":
        both = np.load(out)
    else:
        tensors = load_file(str(out))
        both = torch.cat([tensors["audio"], tensors["video"]], dim=1).numpy()
    assert both.shape == (data_set.samples, 32)
    assert np.allclose(np.linalg.norm(both[:, :16], axis=1), 1, atol=1e-5)
    record = json.loads(figures.read_bytes())
    assert record["clips"] == data_set.samples
    again = tmp_path / "again.npy"
    words = [str(tmp_path / "model"), data_set.folder, "--features", str(again)]
    assert run(main, [*words, "--statistics", "audioset", "--batch-size", "7"]) == 0
    order = again.with_suffix(".keys.txt").read_text().split()
    assert np.allclose(np.load(again), both[[keys.index(k) for k in order]], atol=1e-5)


def test_bad_input(tmp_path: Path, data_set: Manifest) -> None:
    with pytest.raises(CavmaeError, match="is no folder of weights"):
        main([str(tmp_path / "nothing"), data_set.folder])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CavmaeError, match="is no folder of weights"):
        main([str(tmp_path), data_set.folder])
    CAVMAE(SHAPE).save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match=r"\.npy or \.safetensors"):
        main([str(tmp_path / "model"), data_set.folder, "--features", "x.txt"])
    with pytest.raises(UsageError, match="--device cuda:77"):
        main(
            [
                str(tmp_path / "model"),
                data_set.folder,
                "--statistics",
                "audioset",
                "--device",
                "cuda:77",
            ]
        )
    with pytest.raises(CavmaeError):
        main([str(tmp_path / "model"), str(tmp_path / "no-shards")])
