"""Result folders of `cavmae separate`: names of any kind, reruns, errors of single recordings."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cavmae.common.errors import CavmaeError
from cavmae.finetune.inference.audio import peak_of, write_wav
from cavmae.finetune.inference.naming import (
    LONGEST,
    PIECE,
    PIECES,
    folder_names,
    is_result_of,
    is_same_content,
    scratch_of,
    shortened,
    source_facts,
)
from cavmae.finetune.inference.recording_errors import FullDiskError, recording_errors
from cavmae.finetune.inference.result_files import SeparatedFiles
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.tools.separate import main

Maker = Callable[..., Path]


def words(checkpoint: str, out: Path, *more: str) -> list[str]:
    """Options of the fastest run."""
    return ["--model", checkpoint, "--out", str(out), "--second-look", "false",
            "--overlay", "false", "--masks", "false", "--device", "cpu", *more]  # fmt: skip


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# --- names ---


def test_recordings_of_any_name(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = video(seconds=0.5)
    names = [
        "会議の録画と質疑応答" * 8 + "その二.mp4",  # 253 bytes
        "会議の録画と質疑応答" * 8 + "その三.mp4",  # other only where it is cut
        "x" * 251 + ".mp4", "-out.mp4", ".hidden.mp4", "...mp4", "..mp4", "é.mp4", "e\u0301.mp4",
        "Ä.mp4", "ä.mkv", "ä.mp4", "हिन्दी.mp4", "a\nb.mp4", os.fsdecode(b"caf\xe9.mp4"),
    ]  # fmt: skip
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in names:
        shutil.copy(source, folder / name)  # links would be the same file
    out = tmp_path / "out"
    paths = [str(folder / name) for name in names]
    assert main([*paths, *words(checkpoint, out)]) == 0
    results = sorted(out.iterdir())
    assert len(results) == len(names)
    assert {SeparatedFiles.load(p).record["source"] for p in results} == set(paths)
    assert all(len(os.fsencode(p.name)) <= LONGEST for p in results)
    assert not any(p.name.startswith(("-", ".")) or "\n" in p.name for p in results)
    assert len({p.name.casefold() for p in results}) == len(results)
    assert {"हिन्दी", "hidden", "é", "out", "Ä"} <= {p.name for p in results}
    before = times(out)
    caplog.set_level("INFO", "cavmae")
    caplog.clear()
    assert main([*paths[::-1], *words(checkpoint, out)]) == 0  # in whatever order
    assert times(out) == before
    assert caplog.text.count("is there already") == len(names)
    assert f"0 of {len(names)} videos separated, {len(names)} there already" in caplog.text


def file_names() -> st.SearchStrategy[str]:
    """Names as Python holds them: other surrogates than those of undecodable bytes never occur."""
    bytes_of_others = st.integers(0xDC80, 0xDCFF).map(chr)
    plain = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    names = st.text(plain | bytes_of_others)
    return names.map(lambda name: os.fsdecode(os.fsencode(name)))  # bytes may be a character


@given(file_names(), st.integers(20, 80))
def test_names_are_cut_between_characters(name: str, longest: int) -> None:
    short = shortened(name, longest)
    assert len(short.encode(errors="surrogatepass")) <= longest
    decodable = name.encode(errors="surrogateescape").decode(errors="ignore")
    assert short == name or decodable.startswith(short[:-7].rstrip("-."))
    for other in folder_names(f"videos/{name}", longest):
        assert 0 < len(other.encode()) <= longest
        assert not other.startswith(("-", "."))
        assert "/" not in other


def test_a_result_folder_of_the_longest_name(
    separator: Separator, video: Maker, tmp_path: Path
) -> None:
    settings = SeparateSettings(False, overlay=False, masks=False)
    out = tmp_path / ("長" * 85)
    assert len(os.fsencode(scratch_of(out).name)) <= 255
    assert separator.separate(str(video(seconds=0.5)), out, settings).folder == out
    assert {p.name for p in tmp_path.iterdir()} == {out.name, "video.mp4"}


# --- errors of single recordings ---


def test_no_error_of_one_recording_stops_the_others(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    paths = [str(video(f"{name}.mp4", seconds=0.5)) for name in "abcd"]
    (out / ".a.unfinished").write_text("a file where a folder has to be")
    (out / "b").mkdir()
    (out / "b" / "result.json").write_text("{")
    separate_file = Separator._separate_file

    def fault(self: Separator, name: str, *arguments: Any) -> None:
        if Path(name).stem == "c":
            raise IndexError("a fault of ours")
        separate_file(self, name, *arguments)

    monkeypatch.setattr(Separator, "_separate_file", fault)
    lost = str(tmp_path / "lost.mp4")
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join([*paths[:3], lost, "n" * 300 + ".mp4", paths[3]]))
    assert main([str(listed), *words(checkpoint, out)]) == 1
    assert SeparatedFiles.load(out / "d").record["source"] == paths[3]
    end = caplog.text.partition("5 of 6 videos failed:")[2].strip().splitlines()
    assert len(end) == 5  # a line each
    for line, path, message in zip(
        end, [*paths[:3], lost, "n" * 300],
        ["File exists", "holds no finished result", "IndexError: a fault of ours",
         "there is no such file", "File name too long"], strict=True,
    ):  # fmt: skip
        assert path in line
        assert message in line


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"people": [], "residual": "r", "overlay": NaN}', b"\xff", b"[]"]
)
def test_a_result_of_others_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(CavmaeError, match="holds no finished result"):
        SeparatedFiles.load(tmp_path)


def test_a_full_disk_stops_the_run_with_its_sentence(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """libsndfile alone would only say "System error"."""
    paths = [str(video(f"{name}.mp4", seconds=0.5)) for name in "ab"]
    with pytest.raises(OSError, match="No space left") as caught:
        write_wav(Path("/dev/full"), torch.zeros(20_000).numpy(), 1.0, 16_000)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(
        "cavmae.finetune.inference.result_files.write_wav",
        lambda _, *arguments: write_wav(Path("/dev/full"), *arguments),
    )
    out = tmp_path / "out"
    assert main([*paths, *words(checkpoint, out)]) == 1
    assert "a.mp4: its results cannot be written (No space left on device)" in caplog.text
    assert "b.mp4: it was not begun" in caplog.text
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_no_sample_is_larger_than_full_scale_at_any_rate(rate: int, tmp_path: Path) -> None:
    """A tone whose peaks lie between the samples."""
    wave = np.sin(np.pi / 4 + np.arange(32_000) * np.pi / 2).astype(np.float32)  # +-0.71
    peak = peak_of(wave, rate)
    assert peak == pytest.approx(0.707 if rate == 16_000 else 1.0, abs=0.05)
    write_wav(tmp_path / "a.wav", wave, 0.99 / peak, rate)
    written, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert np.abs(written.astype(int)).max() <= 0.99 * 32768 + 1


def test_a_read_only_folder_asks_for_another_one() -> None:
    with (
        pytest.raises(FullDiskError, match="Read-only file system\\): name another folder"),
        recording_errors("a.mp4", "m", "fp32", {}),
    ):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


# --- reruns ---


def test_a_rerun_is_of_the_same_recording_and_the_same_weights(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    path, out = video("x/a.mp4", seconds=0.5), tmp_path / "out"
    other = video("y/a.mp4", seconds=0.6)
    assert main([str(path), *words(str(model), out)]) == 0
    # Named from elsewhere, and by a copy of the same weights.
    monkeypatch.chdir(path.parent)
    assert main(["a.mp4", *words(checkpoint, out)]) == 0
    assert [p.name for p in out.iterdir()] == ["a"]
    # By the same words another recording is meant elsewhere.
    monkeypatch.chdir(other.parent)
    assert main(["a.mp4", *words(checkpoint, out)]) == 0
    assert len(list(out.iterdir())) == 2
    before = times(out)
    speaker, _ = load_speaker(str(model))
    with torch.no_grad():
        next(speaker.parameters()).view(-1)[0] += 1
    speaker.save_pretrained(model)
    assert main([str(path), str(other), *words(str(model), out)]) == 1
    assert caplog.text.count("was made with other weights") == 3
    shutil.copy(video("new.mp4", seconds=0.7), path)
    caplog.clear()
    assert main([str(path), str(other), *words(checkpoint, out)]) == 1
    assert "x/a.mp4: " in caplog.text
    assert "was made with another content of the recording" in caplog.text
    path.unlink()  # its result is good without it
    listed = tmp_path / "list.txt"
    listed.write_text("x/a.mp4\ny/a.mp4\n")
    assert main([str(listed), *words(checkpoint, out)]) == 0
    assert times(out) == before


def test_all_that_moves_together_stays_finished(
    checkpoint: str, video: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video("before/a.mp4", seconds=0.5)
    for place in ("before", "after"):
        if place == "after":
            (tmp_path / "before").rename(tmp_path / "after")
        monkeypatch.chdir(tmp_path / place)
        assert main(["a.mp4", *words(checkpoint, Path("out"))]) == 0
        assert [p.name for p in Path("out").iterdir()] == ["a"]


def test_results_in_another_folder_are_no_recordings(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A search finds the videos of earlier runs in other folders; those of others it keeps."""
    caplog.set_level("INFO", "cavmae")
    folder = tmp_path / "videos"
    path = video("videos/a.mp4", seconds=0.5)
    first, second = folder / "first", folder / "second"
    options = words(checkpoint, first, "--overlay", "true")
    assert main([str(folder), *options]) == 0
    assert (first / "a" / "overlay.mp4").is_file()
    half = folder / "killed" / ".a.unfinished" / "made"
    half.mkdir(parents=True)
    shutil.copy(path, half / "overlay.mp4")
    shutil.copy(path, first / "a" / "mine.mp4")  # a recording that somebody put there
    (folder / "result.json").write_text("[]")  # another program's
    assert main([str(folder), *words(checkpoint, second)]) == 0
    assert "2 videos are results of earlier runs; they are skipped" in caplog.text
    assert {p.name for p in second.iterdir()} == {"a", "mine"}


def test_equal_names_and_sizes_are_two_recordings_while_both_are_there(
    checkpoint: str, video: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    video("one/a.mp4", seconds=0.5)
    (tmp_path / "two").mkdir()
    shutil.copy(tmp_path / "one" / "a.mp4", tmp_path / "two" / "a.mp4")
    for place in ("one", "two"):
        monkeypatch.chdir(tmp_path / place)
        assert main(["a.mp4", *words(checkpoint, out)]) == 0
    records = [SeparatedFiles.load(folder).record for folder in out.iterdir()]
    assert {r["source_path"] for r in records} == {
        str(tmp_path / "one" / "a.mp4"), str(tmp_path / "two" / "a.mp4")
    }  # fmt: skip


@pytest.mark.parametrize("option", ["mask", "voice"])
def test_another_content_of_the_targets_file_is_another_target(
    option: str, checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, file = video("a.mp4", seconds=0.5), tmp_path / "target"
    options = [str(path), *words(checkpoint, tmp_path / "out"), f"--target.{option}", str(file)]
    for number in range(2):
        if option == "mask":
            white = np.zeros((64, 96), np.uint8)
            white[:, : 20 + 40 * number] = 255
            Image.fromarray(white).save(file, "PNG")
        else:
            wave = np.sin(np.arange(16_000) * (0.1 + 0.1 * number)) / 2
            soundfile.write(file, wave, 16_000, format="WAV")
        assert main(options) == number
    assert "was made with another content of the target's file" in caplog.text


def test_another_recording_of_the_same_size_is_another(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As uncompressed recordings of one length are."""
    path, out = video("a.mp4", seconds=0.5), tmp_path / "out"
    assert main([str(path), *words(checkpoint, out)]) == 0
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert main([str(path), *words(checkpoint, out)]) == 1
    assert "was made with another content of the recording" in caplog.text


def test_a_recording_that_is_gone_has_no_result_of_its_name_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"recording")
    record = source_facts(str(path)) | {"source": "a.mp4", "source_path": "/elsewhere/a.mp4"}
    with contextlib.chdir(tmp_path):
        assert is_result_of(record, "a.mp4")  # moved
        path.write_bytes(b"Recording")
        assert not is_result_of(record, "a.mp4")
        path.unlink()
        assert not is_result_of(record, "a.mp4")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    facts = source_facts(str(tmp_path / "a.mp4"))
    assert facts["source_digest"] is None


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 5 * PIECE, 40 * PIECE])
def test_the_digest_is_of_the_whole_of_small_files(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    content = np.random.default_rng(0).integers(256, size=size, dtype=np.uint8)
    path.write_bytes(content.tobytes())
    before = source_facts(str(path))
    assert is_same_content(before, source_facts(str(path)))
    for place in {0, size // 2, size - 1} & set(range(size)):
        changed = content.copy()
        changed[place] ^= 1
        path.write_bytes(changed.tobytes())
        if size <= PIECES * PIECE or place in (0, size - 1):
            assert not is_same_content(before, source_facts(str(path)))


@pytest.mark.parametrize("name", ["10:30", "rec:1/day"])
def test_a_colon_in_the_name_of_the_output(
    name: str, checkpoint: str, video: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg takes what stands before one for a protocol."""
    path = video("a.mp4", seconds=0.5)
    monkeypatch.chdir(tmp_path)
    assert main([str(path), *words(checkpoint, Path(name), "--overlay", "true")]) == 0
    assert (tmp_path / name / "a" / "overlay.mp4").is_file()


def test_a_rerun_reports_existing_results(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a folder that holds recordings and results, one of them cut short, one half removed."""
    caplog.set_level("INFO", "cavmae")
    folder = tmp_path / "videos"
    paths = [video(f"videos/{name}.mp4", seconds=0.5) for name in "abc"]
    out = folder / "out"
    known = [str(folder), *words(checkpoint, out, "--masks", "true")]
    half = out / ".a.unfinished" / "work"
    half.mkdir(parents=True)
    (half.parent / "made").mkdir()
    shutil.copy(paths[0], half.parent / "made" / "person-1.mp4")
    assert main(known) == 0
    assert "a.mp4: an interrupted run left it half done; it begins anew" in caplog.text
    assert {p.name for p in out.iterdir()} == {"a", "b", "c"}
    (out / "b" / "person-1.wav").unlink()
    shutil.rmtree(out / "c")
    caplog.clear()
    assert main(known) == 1
    assert {p.name for p in out.iterdir()} == {"a", "b", "c"}
    assert "are results of earlier runs; they are skipped" in caplog.text
    assert "a.mp4: " in caplog.text
    assert "out/a is there already" in caplog.text
    assert "out/b lacks person-1.wav: remove it" in caplog.text
    assert "1 of 3 videos separated, 1 there already" in caplog.text
    assert "1 of 3 videos failed" in caplog.text
    record = json.loads((out / "a" / "result.json").read_text())
    assert record["source_bytes"] == paths[0].stat().st_size
