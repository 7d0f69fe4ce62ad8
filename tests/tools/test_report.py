"""`cavmae report`: a page that works from a file, in a real browser."""

import dataclasses
import json
import re
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.tools.benchmarks.media import make_video
from cavmae.tools.report import main
from cavmae.tools.reporting.charts import (
    Line,
    SpeakingRow,
    TimelineRow,
    lines,
    speaking_chart,
    timeline,
)
from cavmae.tools.reporting.examples import tracks_of
from cavmae.tools.reporting.sources import Separation, sources_of
from tests.conftest import SMALL
from tests.finetune.speaker.scenes import model
from tests.tools.report_folders import EVENT_MEASURES, PREDICTION, RECORD, page_of, write

NAMES = ("first & <best>", "second")


def run_folder(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    records = [
        {"step": step, "kind": "train", "loss": 3 / step + rng.random(), "lr": 1e-3,
         "samples_per_sec": 20 + rng.random(), "grad_norm": 10 / step,
         "data_wait": 0.01}
        for step in range(10, 300, 10)
    ]  # fmt: skip
    records += [
        {"step": s, "kind": "held_out", "iou": s / 400, "silence_db": None} for s in (100, 200)
    ]
    records.append({"step": 280 + 10 * seed, "kind": "held_out", "once": 0.125 + seed})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    (folder / "config.yaml").write_text("loop:\n  steps: 300\nnote: <b>\n")
    retrieval = {"clips": 40, "audio_to_video": {"recall_at_1": 0.25, "median_rank": 3.0}}
    (folder / "retrieval.json").write_text(json.dumps(retrieval))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, data_set: Manifest) -> list[str]:
    root = tmp_path_factory.mktemp("report")
    runs = [run_folder(root / f"run{n}" / name, n) for n, name in enumerate(NAMES)]
    shutil.copy(Path("docs/talkers.jpg"), runs[0] / "look.png")
    measures = {
        "model": "x", "list": "l.jsonl", "cue": "none", "scenes": {"model": [1, 2]},
        "summary": {"model": {"si_sdri": 5.25, "iou": 0.81},
                    "frames_blanked": {"si_sdri": -0.5}},
    }  # fmt: skip
    for name in ("before", "after"):
        (root / name).mkdir()
        (root / name / "measures.json").write_text(json.dumps(measures))
    write(root / "predicted" / "street", "events.json", PREDICTION)
    write(root / "events", "events.json", EVENT_MEASURES)
    shutil.copy(Path("docs/labels.png"), root / "events" / "confusion.png")
    # A rendered clip with its ground truth.
    clip = root / "clips" / "000000"
    clip.mkdir(parents=True)
    video = make_video(clip / "000000.mp4", dataclasses.replace(SMALL, seconds=1.0))
    voice = np.random.default_rng(0).normal(size=16_000) * 0.05
    soundfile.write(str(clip / "voice-1.flac"), voice, 16_000)
    people = [{"speaker": "s1", "role": "speaking", "voice": "voice-1.flac"}]
    (clip / "truth.json").write_text(json.dumps({"people": people}))
    speaker_model = model()
    with torch.no_grad():
        speaker_model.state_head[-1].bias.copy_(torch.tensor([3.0, 0.0, -3.0, -3.0]))
    speaker_model.save_pretrained(root / "model")
    (root / "model" / "preprocessing.json").write_text('{"fbank_mean": -6.0, "fbank_std": 4.0}')
    separator = Separator.from_pretrained(str(root / "model"), "cpu")
    separator.separate(str(video), root / "separated" / "clip", SeparateSettings(False))
    return [*map(str, runs), str(root / "before"), str(root / "after"), str(root / "separated"),
            str(root / "predicted"), str(root / "events"), data_set.folder]  # fmt: skip


@pytest.fixture(scope="module")
def page(folders: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main([*folders, "--out", str(path), "--title", "Two runs"]) == 0
    return path


class Tags(HTMLParser):
    """All start tags and their attributes, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_single_values_are_in_a_table(page: Path) -> None:
    text = page.read_text()
    assert "second, step 290</th>" in text
    assert re.search(r'<th scope="row">once</th><td>0\.125</td><td>1\.125</td>', text)
    assert "once over training steps" not in text
    assert "IoU over training steps" in text


def test_a_page_is_self_contained(page: Path) -> None:
    parsed = Tags()
    parsed.feed(page.read_text())
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "poster", "xlink:href"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
    assert "@import" not in page.read_text()
    assert "url(http" not in page.read_text()


def test_every_image_has_a_text_alternative(page: Path) -> None:
    parsed = Tags()
    parsed.feed(page.read_text())
    for tag, attributes in parsed.tags:
        if tag == "img":
            assert len(attributes.get("alt") or "") > 10
        if tag in ("svg", "audio", "video"):
            assert len(attributes.get("aria-label") or "") > 3
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 8
    assert sum(tag == "audio" for tag, _ in parsed.tags) >= 4


def test_content_of_a_page(page: Path) -> None:
    parsed = Tags()
    parsed.feed(page.read_text())
    for text in (*NAMES, "Two runs", "Learning rate", "samples per second", "25.0%", "5.25", "0.81",
                 "frames_blanked", "person 1", "s1, speaking", "residual", "note: <b>",
                 "SI-SDR", "before", "after", "Not checked yet"):  # fmt: skip
        assert text in parsed.text, text


def test_events_of_a_page(page: Path) -> None:
    text = page.read_text()
    for part in (
        "2.5 s by m: mode missing_audio, frames 10, averaged, weights not averaged; windows of 1 s",
        "<li>it has no audio",
        '<th scope="row">_dog &lt;b&gt;</th><td>0.90</td><td>0.60</td><td>0.0-1.0, 2.0-2.5</td>',
        '<th scope="row">rain</th><td>0.30</td><td>0.17</td><td>-</td>',
        "over time: _dog &lt;b&gt; up to 0.90, rain up to 0.30",
        '<th scope="row">mAP</th><td>0.5125</td><td>audio_only</td><td>none</td>',
        '<th scope="row">dog</th><td>3</td><td>0.625</td><td>-</td>',
        "events: confusion matrix",
    ):
        assert part in text, part
    charts = re.findall(r'<div class="timeline"[^>]*>(.*?)</div>', text, re.DOTALL)
    chart = next(chart for chart in charts if "probability" in chart)
    assert "_dog &lt;b&gt;</text>" in chart  # matplotlib hides names with an underscore elsewhere


def test_a_timeline_of_many_stretches_keeps_its_peaks() -> None:
    probs = np.zeros(5000)
    probs[1234] = 0.75
    drawn = timeline("x", [TimelineRow("a", list(probs), [(1234, 1235)])], np.arange(5001.0))
    assert len(drawn) < 80_000 and "a up to 0.75" in drawn
    absent = timeline("x", [TimelineRow("a", list(probs), [])], np.arange(5001.0))
    assert drawn.count("<path") == absent.count("<path") + 1  # in full colour where present


def test_stretches_between_present_ones_are_not_present() -> None:
    row = TimelineRow("a", [0.9, 0.2, 0.8], [(0.0, 1.0), (2.0, 3.0)])
    drawn = timeline("x", [row], [0.0, 1.0, 2.0, 3.0])
    whole = timeline("x", [row._replace(spans=[(0.0, 3.0)])], [0.0, 1.0, 2.0, 3.0])
    paths = [re.findall(r'<path [^>]*d="([^"]+)"', svg) for svg in (drawn, whole)]

    def width(path: str) -> float:
        values = [float(x) for x in re.findall(r"[ML] (\S+) ", path)]
        return max(values) - min(values)

    # Two areas in full colour, of a stretch each; the axis is as wide as all three.
    narrow = [path for path in paths[0] if path not in paths[1]]
    assert len(narrow) == 2
    assert max(map(width, narrow)) < 0.4 * max(map(width, paths[1]))


def test_who_speaks_when() -> None:
    rows = [
        SpeakingRow("person 1", 1, [(0.0, 4.0)], [(1.0, 2.0), (3.0, 3.5)]),
        SpeakingRow("_b <i>", 2, [(0.0, 2.0)], []),
    ]
    drawn = speaking_chart("meeting", rows, 4.0)
    assert "person 1 speaks from 1.0 to 2.0 s, from 3.0 to 3.5 s; _b &lt;i&gt; does not" in drawn
    assert ">_b &lt;i&gt;</text>" in drawn
    assert "#e69f00" in drawn and "#56b4e9" in drawn  # as in the overlay
    often = speaking_chart("m", [rows[0]._replace(speech=[(n, n + 0.5) for n in range(9)])], 9.0)
    assert "from 3.0 to 3.5 s, and 5 more times" in often


def results_of_one_recording(folder: Path) -> list[Path]:
    """Results of two models on one recording, and one on another."""
    results = []
    for number, (model_name, source) in enumerate((("a", "x.mp4"), ("b", "x.mp4"), ("a", "y.mp4"))):
        person = RECORD["people"][0] | {  # type: ignore[index, operator]
            "visible": [[0.0, 1.0]], "speech": [[0.25, 0.75], ["x", 1]],
        }  # fmt: skip
        record = RECORD | {"model": model_name, "source": source, "people": [person]}
        results.append(write(folder / f"{number}", "result.json", record))
    return results


def test_results_of_one_recording_share_a_switch(tmp_path: Path) -> None:
    text = page_of(tmp_path, *results_of_one_recording(tmp_path))
    assert text.count('type="radio"') == 2
    assert re.findall(r'<label for="recording-1-\d">([^<]+)<', text) == ["0 (a)", "1 (b)"]
    assert "2 results of x.mp4" in text
    assert text.count("speaks from 0.2 to 0.8 s") == 3  # one chart each
    assert "speech is not a list of at most" in text  # and what is wrong with it is listed


def test_a_folder_of_separations_and_predictions_shows_both(tmp_path: Path) -> None:
    both = tmp_path / "both"
    write(both / "street", "events.json", PREDICTION)
    write(both / "film", "result.json", RECORD)
    assert sorted(type(source).__name__ for source in sources_of([str(both)])) == [
        "Prediction", "Separation",
    ]  # fmt: skip


def test_ids_of_drawings_are_their_own(page: Path) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page.read_text())
    used = re.findall(r"url\(#([^)]+)\)", page.read_text())
    clips = [i for i in ids if i in set(used)]
    assert len(clips) == len(set(clips)) == len(set(used))


def test_many_people_are_all_in_the_mixture_and_long_tracks_say_so(tmp_path: Path) -> None:
    folder, count = tmp_path / "crowd", 35
    people = []
    for number in range(1, count + 1):
        voice = np.full(31 * 16_000, 0.01, np.float32)
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / f"person-{number}.wav", voice, 16_000, subtype="FLOAT")
        people.append({"number": number, "voice": f"person-{number}.wav", "mask": None,
                       "state": "speaking", "level_db": -20.0})  # fmt: skip
    soundfile.write(folder / "residual.wav", 0 * voice, 16_000, subtype="FLOAT")
    write(folder, "result.json", RECORD | {"people": people, "seconds": 31.0})
    (separation,) = sources_of([str(folder)])
    assert isinstance(separation, Separation)
    tracks = tracks_of(separation)
    np.testing.assert_allclose(tracks[0].wave, count * 0.01, atol=1e-4)
    assert len(tracks) == 1 + 32 + 1
    assert {len(track.wave) for track in tracks} == {30 * 16_000}
    assert all("the first 30 s; the file has all of it" in track.note for track in tracks)
    text = page_of(tmp_path, folder)
    assert "35 people found by m" in text
    assert "Masks and voices of the first 32 of 35 people follow." in text


def test_the_mixture_is_the_sum_and_the_truth_is_matched(folders: list[str]) -> None:
    separation = next(s for s in sources_of(folders) if isinstance(s, Separation))
    tracks = {t.name: t for t in tracks_of(separation)}
    parts = [w.wave for n, w in tracks.items() if n == "residual" or re.fullmatch(r"person \d", n)]
    np.testing.assert_allclose(tracks["mixture"].wave, np.sum(parts, axis=0), atol=1e-4)
    noted = [t for t in tracks.values() if "SI-SDR" in t.note]
    assert len(noted) == 1
    assert f"{noted[0].name}, truth" in tracks


def test_a_chart_of_few_and_of_many_lines() -> None:
    drawn = lines("Loss", "loss", {f"run {n}": Line([1, 2], [n, n + 1]) for n in range(9)})
    assert drawn.startswith("<svg ")
    assert "run 8 from 8 to 9" in drawn
    assert "#010203" not in drawn


def test_folders_that_are_no_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        main([str(tmp_path / "none"), "--out", str(tmp_path / "r.html")])
    with pytest.raises(UsageError, match="no source of a report"):
        main([str(tmp_path), "--out", str(tmp_path / "r.html")])
    with pytest.raises(UsageError, match="is a folder"):
        main([str(tmp_path), "--out", str(tmp_path)])
    run = run_folder(tmp_path / "run", 0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "ki')  # a run is still writing this line
    assert main([str(run), "--out", str(tmp_path / "r.html")]) == 0
    (run / "metrics.jsonl").write_text('{"step"\n{"step": 1, "kind": "train"}\n')
    with pytest.raises(CavmaeError, match="line 1 is not JSON"):
        main([str(run), "--out", str(tmp_path / "r.html")])


def test_only_a_report_is_replaced(tmp_path: Path) -> None:
    run, mine = run_folder(tmp_path / "run", 0), tmp_path / "thesis.html"
    mine.write_text("<html><head><title>mine</title>")
    with pytest.raises(UsageError, match="is there already, and no report"):
        main([str(run), "--out", str(mine)])
    assert "mine" in mine.read_text()
    for _ in range(2):
        assert main([str(run), "--out", str(tmp_path / "r.html")]) == 0


def test_evaluations_of_different_lists_are_not_compared_in_silence(tmp_path: Path) -> None:
    record = {"model": "m", "list": "a/scenes.jsonl", "cue": "none", "summary": {"model": {}}}
    first = write(tmp_path / "first", "measures.json", record | {"list_sha256": "1"})
    same = write(tmp_path / "same", "measures.json", record | {"list_sha256": "1"})
    other = record | {"list": "b/scenes.jsonl", "list_sha256": "2"}
    second = write(tmp_path / "second", "measures.json", other)
    former = write(tmp_path / "former", "measures.json", record)
    assert "different lists" not in page_of(tmp_path, first, same, former)
    text = page_of(tmp_path, first, second)
    assert "These are of different lists of scenes, so do not compare" in text


# --- in a browser ---


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not shutil.which("chromedriver"):
        pytest.skip("there is no Chromium with its driver here")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
                 "--autoplay-policy=no-user-gesture-required", "--mute-audio"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser: Any, page: Path, tmp_path: Path, width: int, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    assert [e for e in browser.get_log("browser") if e["level"] != "INFO"] == []
    broken = browser.execute_script(
        "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    )
    assert broken == []
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width  # nothing sticks out to the side
    back, ink = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    )
    light = [sum(map(int, re.findall(r"\d+", c)[:3])) for c in (back, ink)]
    assert (light[0] > light[1]) == (scheme == "light")
    drawn = browser.execute_script(
        "return getComputedStyle(document.querySelector('svg text')).fill"
    )
    assert drawn == ink
    if scheme == "light":
        _plays(browser)
    (tmp_path / f"{width}-{scheme}.png").write_bytes(browser.get_screenshot_as_png())


def test_a_switch_and_all_that_scrolls_are_reached_by_keyboard(
    browser: Any, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page_of(tmp_path, *results_of_one_recording(tmp_path))
    browser.get((tmp_path / "page.html").as_uri())

    def displayed() -> list[bool]:
        return [p.is_displayed() for p in browser.find_elements(By.CSS_SELECTOR, ".panel")]

    assert displayed() == [True, False]
    reached = []
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        active = browser.switch_to.active_element
        reached.append(active.get_attribute("id") or active.get_attribute("class") or "")
        if reached[-1] == "recording-1-1":
            active.send_keys(Keys.ARROW_RIGHT)
            assert displayed() == [False, True]
    assert reached[0] == "skip"
    assert "recording-1-1" in reached
    assert "timeline" in reached


def test_a_browser_runs_nothing_and_fetches_nothing(
    browser: Any, page: Path, tmp_path: Path
) -> None:
    """The Content-Security-Policy stops anything that gets past the escaping."""
    (tmp_path / "outside.png").write_bytes(Path("docs/labels.png").read_bytes())
    injected = (
        "<script>document.title = 'it ran'</script><p style='color: red'>x</p>"
        "<img src='outside.png' onerror=\"document.title = 'it ran'\" alt='x'>"
        "<iframe src='outside.png'></iframe></main>"
    )
    path = tmp_path / "page.html"
    path.write_text(page.read_text().replace("</main>", injected))
    browser.get(path.as_uri())
    assert browser.title == "Two runs"
    refused = [e["message"] for e in browser.get_log("browser") if "violates" in e["message"]]
    for directive in ("script-src", "style-src", "img-src", "frame-src"):
        assert any(directive in message for message in refused), directive


def _plays(browser: Any) -> None:
    """Every recording and video plays."""
    count = browser.execute_script(
        "window.all = [...document.querySelectorAll('audio, video')];"
        "all.forEach(m => { m.muted = true; m.play(); }); return all.length"
    )
    assert count >= 6
    until = time.monotonic() + 30
    while time.monotonic() < until:
        left = browser.execute_script(
            "return all.filter(m => m.error || !m.duration || m.currentTime <= 0)"
            ".map(m => [m.getAttribute('aria-label'), m.error && m.error.message])"
        )
        if not left:
            return
        time.sleep(0.2)
    pytest.fail(f"these do not play: {left}")
