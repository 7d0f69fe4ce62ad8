"""`cavmae evaluate`: lists, tables, references, what it refuses."""

import importlib.util
import json
from pathlib import Path

import pytest

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.finetune.speaker.evaluation import WAYS
from cavmae.finetune.speaker.metric_table import METRICS
from cavmae.tools import make_scenes
from cavmae.tools.evaluate import main
from tests.datasets.clips import clip, data_set_of, people_of
from tests.finetune.speaker.scenes import model

SIZE = [
    "--compose.height", "32", "--compose.width", "48", "--compose.seconds", "0.64",
    "--compose.people", "[0,1,0]", "--compose.all_off_screen_prob", "0",
    "--compose.silent_prob", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return people_of(tmp_path_factory.mktemp("clips") / "set", frames=16)  # 0.64 s: STOI needs 0.4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "000000001"
    model().save_pretrained(folder)
    (folder / "preprocessing.json").write_text('{"fbank_mean": -6.0, "fbank_std": 4.0}')
    return str(folder)


@pytest.fixture(scope="module")
def scenes(clips: Manifest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("lists") / "list.jsonl"
    assert make_scenes.main([clips.folder, "--list", str(path), "--count", "5", *SIZE]) == 0
    return str(path)


def test_all_measures_beside_all_references(
    clips: Manifest,
    checkpoint: str,
    scenes: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    people = tmp_path / "people.csv"
    people.write_text("speaker,sex\n" + "".join(f"s{n},{'fm'[n % 2]}\n" for n in range(6)))
    words = [
        clips.folder, "--model", checkpoint, "--list", scenes, "--out", str(tmp_path / "out"),
        "--workers", "0", "--batch-size", "2", "--people", str(people),
    ]  # fmt: skip
    assert main(words) == 0
    record = json.loads((tmp_path / "out" / "measures.json").read_text())
    assert set(record["scenes"]) == set(WAYS)
    assert len(record["scenes"]["model"]) == 5
    assert len(record["scenes"]["oracle_ratio_mask"]) == 5
    assert record["summary"]["oracle_ratio_mask"]["si_sdri"] > 1
    assert 0 <= record["dependence"]["muted"] <= 1
    # With seed 0 some of five pairs among three women and three men are alike, some not.
    assert set(record["groups"]) == {"same sex", "different sex"}
    for drawn in ("measures.png", "examples.png"):
        assert (tmp_path / "out" / drawn).read_bytes()[:4] == b"\x89PNG"
    assert 0 < record["real_time_factor"] < 100
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "out" / "table.md").read_text().strip()
    for name in ("si_sdri", "stoi", "iou", "binding", "confusion"):
        assert f"| {METRICS[name].label} |" in printed
    assert "| masks that change, audio muted |" in printed
    for way in ("model", "frames_blanked"):
        assert 0 < record["summary"][way]["activity_ap"] <= 1
    assert "activity_ap" not in record["summary"]["oracle_ratio_mask"]
    missing = importlib.util.find_spec("pyannote") is None
    assert ("Diarization error rates are missing" in printed) == missing
    assert ("| diarization error rate |" in printed) != missing
    missing = importlib.util.find_spec("pesq") is None
    assert ("PESQ is missing" in printed) == missing
    assert ("| PESQ |" in printed) != missing


def test_the_own_voice_beside_another(
    clips: Manifest, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.jsonl"
    words = [clips.folder, "--list", str(path), *SIZE, "--compose.overlap", "1", "--voice-pairs"]
    with pytest.raises(UsageError, match="an even number of scenes"):
        make_scenes.main([*words, "--count", "5"])
    assert make_scenes.main([*words, "--count", "6"]) == 0
    capsys.readouterr()
    assert main([
        clips.folder, "--model", checkpoint, "--list", str(path), "--out", str(tmp_path / "out"),
        "--workers", "0", "--batch-size", "4", "--references", "false",
    ]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "| 6 scenes | model | other voice | own voice |" in printed
    record = json.loads((tmp_path / "out" / "measures.json").read_text())
    assert record["groups"] == {
        "own voice": ["00000", "00002", "00004"], "other voice": ["00001", "00003", "00005"],
    }  # fmt: skip
    assert set(record["summary"]) == {"model", "own voice", "other voice"}
    scenes = record["scenes"]["model"]
    assert [scene["own_voice"] for scene in scenes] == [True, False] * 3
    assert all(0 < scene["voice_score"] < 1 for scene in scenes)
    own, other = ([s["voice_score"] for s in scenes[first::2]] for first in (0, 1))
    wins = sum((a > b) + 0.5 * (a == b) for a in own for b in other)
    assert record["summary"]["model"]["own_voice_auc"] == pytest.approx(wins / 9)


@pytest.mark.parametrize("cue", ["none", "box", "point", "mask", "voice"])
def test_the_same_however_scenes_are_batched(
    clips: Manifest, checkpoint: str, scenes: str, tmp_path: Path, cue: str
) -> None:
    records = []
    for name, batch in (("a", 2), ("b", 3)):
        words = [
            clips.folder, "--model", checkpoint, "--list", scenes, "--out", str(tmp_path / name),
            "--workers", "0", "--batch-size", str(batch), "--cue", cue, "--references", "false",
        ]  # fmt: skip
        if cue == "voice":  # no person has a second clip
            with pytest.raises(UsageError, match="recordings of the same people"):
                main(words)
            return
        assert main(words) == 0
        records.append(json.loads((tmp_path / name / "measures.json").read_text()))
    for scene, same_scene in zip(*(f["scenes"]["model"] for f in records), strict=True):
        for person, same in zip(scene["people"], same_scene["people"], strict=True):
            assert person["is_target"] == same["is_target"]
            assert person["iou"] == pytest.approx(same["iou"], abs=1e-3)
            assert person["si_sdr"] == pytest.approx(same["si_sdr"], abs=1e-2)
    people = [p for scene in records[0]["scenes"]["model"] for p in scene["people"]]
    assert sum(p["is_target"] for p in people) == (0 if cue == "none" else 5)
    assert len(people) == 10


@pytest.mark.parametrize("share", ["0.5", "1"])
def test_scenes_without_people(
    clips: Manifest, checkpoint: str, tmp_path: Path, share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """False people are counted; a list of such scenes has no figures of people."""
    path = str(tmp_path / "list.jsonl")
    words = [
        clips.folder,
        "--list",
        path,
        "--count",
        "6",
        *SIZE,
        "--compose.without_people_prob",
        share,
    ]
    assert make_scenes.main(words) == 0
    people = tmp_path / "people.csv"
    people.write_text("speaker,sex\n" + "".join(f"s{n},{'fm'[n % 2]}\n" for n in range(6)))
    words = [
        clips.folder, "--model", checkpoint, "--list", path, "--out", str(tmp_path / "out"),
        "--workers", "0", "--batch-size", "2", "--people", str(people),
    ]  # fmt: skip
    assert main(words) == 0
    record = json.loads((tmp_path / "out" / "measures.json").read_text())
    counts = [len(scene["people"]) for scene in record["scenes"]["model"]]
    assert 0 in counts
    assert (2 in counts) == (share != "1")
    assert all(scene["false_slots"] >= 0 for scene in record["scenes"]["model"])
    printed = capsys.readouterr().out
    assert f"| {METRICS['false_slots'].label} |" in printed
    assert (f"| {METRICS['si_sdri'].label} |" in printed) == (share != "1")


def test_a_cue_that_no_scene_has(checkpoint: str, tmp_path: Path) -> None:
    bare = data_set_of(tmp_path / "bare", [clip(n, speaker=f"s{n}", masks=False) for n in range(6)])
    (Path(bare.folder) / "manifest.json").write_bytes(bare.to_bytes())
    path = str(tmp_path / "list.jsonl")
    make_scenes.main([bare.folder, "--list", path, "--count", "2", *SIZE])
    with pytest.raises(UsageError, match="are made of masks"):
        main([bare.folder, "--model", checkpoint, "--list", path, "--cue", "box",
              "--workers", "0", "--references", "false"])  # fmt: skip


def test_a_folder_has_one_evaluation(
    clips: Manifest, checkpoint: str, scenes: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    options = ["--model", checkpoint, "--workers", "0", "--references", "false"]
    words = [clips.folder, *options, "--list", scenes, "--out"]
    assert main([*words, str(out)]) == 0
    assert main([*words, str(out)]) == 0  # of the same model and list
    capsys.readouterr()
    (tmp_path / "file").write_text("mine")
    other = tmp_path / "other.jsonl"
    make_scenes.main([clips.folder, "--list", str(other), "--count", "2", "--seed", "3", *SIZE])
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "events.json").write_text("{}")
    for refused, reason in (
        ([*words, str(tmp_path / "file")], "a file is in its place"),
        ([*words, str(tmp_path / "events")], "another kind of model"),
        ([*words, str(out), "--cue", "box"], "another --cue"),
        ([*words, str(out), "--list", str(other)], "another list of scenes"),
    ):
        with pytest.raises(UsageError, match=reason):
            main(refused)
        assert not capsys.readouterr().out  # before anything is measured
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(UsageError, match="has no classes"):
        main([*words, str(out), "--hints"])


def test_an_empty_list_is_no_list(clips: Manifest, checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").touch()
    with pytest.raises(CavmaeError, match=r"no readable list of scenes .it is empty"):
        main([clips.folder, "--model", checkpoint, "--list", str(tmp_path / "list.jsonl")])


def test_what_it_refuses(clips: Manifest, checkpoint: str, scenes: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is there already"):
        make_scenes.main([clips.folder, "--list", scenes, "--count", "3", *SIZE])
    with pytest.raises(UsageError, match="--list"):
        main([clips.folder, "--model", checkpoint])
    with pytest.raises(UsageError, match="--model"):
        main([clips.folder, "--list", scenes])
    other = str(tmp_path / "other.jsonl")
    wider = [*SIZE, "--compose.width", "64"]
    make_scenes.main([clips.folder, "--list", other, "--count", "2", *wider])
    with pytest.raises(UsageError, match="make a list of those"):
        main([clips.folder, "--model", checkpoint, "--list", other])
    crowd = str(tmp_path / "crowd.jsonl")
    three = [*SIZE, "--compose.people", "[0,0,1]"]
    make_scenes.main([clips.folder, "--list", crowd, "--count", "2", *three])
    few = tmp_path / "few"
    model(slots=3).save_pretrained(few)
    (few / "preprocessing.json").write_text('{"fbank_mean": -6.0, "fbank_std": 4.0}')
    with pytest.raises(UsageError, match="scenes of 3 people, the model has places for 2"):
        main([clips.folder, "--model", str(few), "--list", crowd])
    table = tmp_path / "people.csv"
    table.write_text("name\nx\n")
    with pytest.raises(CavmaeError, match="columns speaker and sex"):
        main([clips.folder, "--model", checkpoint, "--list", scenes, "--people", str(table),
              "--references", "false", "--workers", "0"])  # fmt: skip
