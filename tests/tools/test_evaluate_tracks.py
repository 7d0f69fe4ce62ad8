"""`cavmae make-footage` and `cavmae evaluate-tracks`, with a model that has learned nothing."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from cavmae.common.errors import CavmaeError
from cavmae.datasets.footage.rendering import LIST, video_path
from cavmae.datasets.footage.spec import read_footage_list
from cavmae.finetune.tracking.evaluation import TRACK_METRICS
from cavmae.tools.evaluate_tracks import main
from cavmae.tools.make_footage import main as make_footage_main
from tests.datasets.footage.clips import SHORT, talkers_of


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    shards = talkers_of(folder / "set").folder
    values = dataclasses.asdict(SHORT) | {"kinds": "[portrait,cut]"}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    assert make_footage_main([shards, "--out", str(folder / "footage"), *options]) == 0
    return folder / "footage"


def test_the_table_and_the_record(
    footage: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(footage), "--model", checkpoint, "--device", "cpu", "--no-second-look"]
    words += ["--min-seconds", "0"]
    assert main(words) == 0
    table = capsys.readouterr().out.strip().splitlines()
    assert table[0] == "| 2 recordings | all | portrait | cut |"
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1] for line in table[2:]}
    assert set(rows) <= {metric.label for metric in TRACK_METRICS.values()}
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    everything = record["summary"]["all"]
    assert f"{everything['idf1']:.3f}" == rows["IDF1"]
    assert f"{everything['people']:.2f}" == rows["people, true, a recording"]
    specs = read_footage_list(footage / LIST)[1]
    assert everything["people"] == sum(len(spec.talkers) for spec in specs) / 2
    assert list(record["recordings"]) == [spec.name for spec in specs]
    counts = list(record["recordings"].values())
    frames = sum(c["person_frames"] + c["track_frames"] for c in counts)
    assert everything["idf1"] == pytest.approx(
        2 * sum(c["identity_frames"] for c in counts) / frames
    )
    for spec, of_recording in zip(specs, counts, strict=True):
        assert len(of_recording["voices"]) == len(spec.talkers)
    assert record["settings"]["second_look"] is False


def test_a_damaged_recording_is_to_be_rendered_again(
    footage: Path, checkpoint: str, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(footage, tmp_path / "footage"))
    path = video_path(damaged, "portrait-0000")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CavmaeError, match=r"Remove .*portrait-0000.mp4, and run `cavmae make-foo"):
        main([str(damaged), "--model", checkpoint, "--device", "cpu"])


def test_a_missing_recording_is_named(footage: Path, checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(CavmaeError, match="no list of recordings"):
        main([str(tmp_path), "--model", checkpoint, "--device", "cpu"])
    (tmp_path / LIST).write_bytes((footage / LIST).read_bytes())
    with pytest.raises(
        CavmaeError, match=r"portrait-0000.mp4 is missing: run `cavmae make-footage`"
    ):
        main([str(tmp_path), "--model", checkpoint, "--device", "cpu"])
    assert video_path(footage, "portrait-0000").is_file()
