"""Clips and a pretrained encoder for short runs of `cavmae finetune speakers`."""

import json
from pathlib import Path

import pytest

from cavmae.datasets.format.manifest import Manifest
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.model import CAVMAE
from tests.datasets.clips import clip, data_set_of
from tests.finetune.speaker.runs import write


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    samples = [clip(n, speaker=f"s{n}", person=True) for n in range(8)]
    manifest = data_set_of(tmp_path_factory.mktemp("clips") / "set", samples)
    write(manifest)
    return manifest


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "000000001"
    CAVMAE(
        CAVMAEConfig(size="tiny", depth=1, image_height=64, image_width=64, audio_frames=96)
    ).save_pretrained(folder)
    statistics = {"fbank_mean": -6.0, "fbank_std": 4.0}
    (folder / "preprocessing.json").write_text(json.dumps(statistics))
    return folder
