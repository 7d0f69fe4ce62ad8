"""Ground truth of a corpus against its files: masks, voices, times."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import skia
import soundfile
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter

from cavmae.datasets.synthetic.appearance import HAIR_STYLES, draw_appearance
from cavmae.datasets.synthetic.canvas import Canvas, oval, paint, pen, placement
from cavmae.datasets.synthetic.espeak import EspeakVoice
from cavmae.datasets.synthetic.face import EARS, Pose
from cavmae.datasets.synthetic.figure import Figure
from cavmae.datasets.synthetic.mixing import mix, place_speech
from cavmae.datasets.synthetic.population import Population
from cavmae.datasets.synthetic.recordings import SpeechRecording
from cavmae.datasets.synthetic.script import write_script
from cavmae.datasets.synthetic.settings import RenderSettings
from cavmae.datasets.synthetic.speaker_discovery import load_or_discover
from cavmae.datasets.synthetic.stage import Stage
from cavmae.datasets.synthetic.voices import RecordedVoice
from cavmae.tools.benchmarks.lips import audio_lag, correlation, envelope
from tests.datasets.synthetic.conftest import render


def truths(corpus: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(corpus.glob("clips/*/truth.json")):
        yield path.parent, json.loads(path.read_bytes())


def masks_of(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(p)) for p in sorted((folder / "masks").iterdir())])


def frames_of(folder: Path) -> tuple[np.ndarray, list[float]]:
    with av.open(str(folder / f"{folder.name}.mp4")) as container:
        frames = list(container.decode(video=0))
    return np.stack([f.to_ndarray(format="rgb24") for f in frames]), [f.time for f in frames]


def assert_equal_to_a_pixel(
    labels: np.ndarray, wanted: np.ndarray, shapes: list[np.ndarray]
) -> None:
    """Equal, but for pixels at a shape's edge whose middle lies so near that rounding decides."""
    differing = labels != wanted
    assert np.count_nonzero(differing) <= 0.01 * wanted.size
    edges = np.any([binary_dilation(s) & binary_dilation(~s) for s in shapes], axis=0)
    assert not np.any(differing & ~edges)


def sound_of(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(str(path), dtype="int16")
    assert rate == 16_000
    return np.asarray(samples)


def test_labels_are_the_pixels_whose_middle_lies_in_the_last_shape() -> None:
    """Against a naive loop that asks every shape about every pixel."""
    size = 48
    rng = np.random.default_rng(3)
    canvas = Canvas((size, size))
    wanted = np.zeros((size, size), np.uint8)
    drawn: list[np.ndarray] = []
    for number in range(12):
        place = placement(*rng.uniform(10, 38, 2), rng.uniform(0, 90), rng.uniform(5, 20))
        shape = oval(*rng.uniform(-0.5, 0.5, 2), *rng.uniform(0.3, 1, 2))
        window = oval(0, 0, 0.9, 0.8) if number % 3 == 0 else None
        label = number + 1 if number % 4 else None
        with canvas.transformed(place):
            if window is None:
                canvas.draw(shape, paint((1, 0, 0)), label)
            else:
                with canvas.clipped(window):
                    canvas.draw(shape, paint((1, 0, 0)), label)
        shape.transform(place)
        if window is not None:
            window.transform(place)
        inside = np.zeros((size, size), bool)
        for y in range(size):
            for x in range(size):
                inside[y, x] = shape.contains(x + 0.5, y + 0.5) and (
                    window is None or window.contains(x + 0.5, y + 0.5)
                )
        drawn.append(inside)
        if label is not None:
            wanted[inside] = label
    assert len(np.unique(wanted)) > 4
    assert_equal_to_a_pixel(canvas.labels, wanted, drawn)


def test_a_line_is_labelled_as_wide_as_it_is_drawn() -> None:
    canvas = Canvas((64, 64))
    line = skia.Path()
    line.moveTo(10, 20)
    line.lineTo(50, 40)
    canvas.draw(line, pen((0, 0, 0), 7), 9)
    drawn = canvas.pixels[..., 3] > 127
    assert np.count_nonzero(drawn != (canvas.labels == 9)) <= 8
    assert np.count_nonzero(drawn) > 250


@pytest.mark.parametrize("style", HAIR_STYLES)
@pytest.mark.parametrize("cover", [None, "hand", "mask", "microphone"])
def test_masks_cover_what_is_drawn_of_a_person(style: str, cover: str | None) -> None:
    """Nothing of a person sticks out of their mask by more than a pixel, nor the other way."""
    for seed in range(2):
        appearance = dataclasses.replace(draw_appearance(seed, seed), style=style)
        figure = Figure(appearance, (1, 2), 0.3, cover)
        canvas = Canvas((160, 160))
        pose = Pose(yaw=0.8 - 1.6 * seed, pitch=0.4, blink=0.2, brow=0.5, gaze_x=0.1, gaze_y=0)
        with canvas.transformed(placement(80, 70, 5 - 10 * seed, 80)):
            figure.draw_back(canvas, pose)
            figure.draw_torso(canvas, 0.3)
            figure.draw_neck(canvas, (0.0, 0.0))
            figure.draw_head(canvas, pose, (0.7, 0.2, 0.4, 0.1), 0.9)
        solid, touched = canvas.pixels[..., 3] == 255, canvas.pixels[..., 3] > 0
        marked = canvas.labels > 0
        assert not np.any(solid & ~binary_dilation(marked))
        assert not np.any(marked & ~touched)
        # The share of a pixel and its middle may disagree, on the edge alone.
        assert np.count_nonzero((canvas.pixels[..., 3] > 127) != marked) < 0.01 * marked.sum()
        assert set(np.unique(canvas.labels)) == {0, 1, 2}


def test_the_face_is_face_and_what_covers_it_is_body() -> None:
    """The face's mask is the drawn outline with the ears, less what lies before it."""
    appearance = dataclasses.replace(
        draw_appearance(5, 5), style="bald", glasses="round", beard="full"
    )
    pose = Pose(0.3, -0.2, 0.0, 0.0, 0.0, 0.0)
    place = placement(64, 60, 8, 70)
    shape = (0.8, 0.0, 0.2, 0.0)
    labels = {}
    for cover in (None, "hand"):
        figure = Figure(appearance, (5, 6), 0.0, cover)
        canvas = Canvas((128, 128))
        with canvas.transformed(place):
            figure.draw_torso(canvas, 0.0)
            figure.draw_head(canvas, pose, shape, 1.0)
        labels[cover] = canvas.labels.copy()
    outline = figure.face.outline(pose, shape[0])
    ears = []
    for side in (-1, 1):
        middle = figure.face.at(pose, side * (appearance.cheek + 0.01), 0.02, EARS)
        ears.append(oval(*middle, 0.045, appearance.ear))
    for path in (outline, *ears):
        path.transform(place)
    wanted = np.array(
        [
            [any(p.contains(x + 0.5, y + 0.5) for p in (outline, *ears)) for x in range(128)]
            for y in range(128)
        ]
    )
    assert_equal_to_a_pixel(labels[None] == 6, wanted, [wanted])
    # The hand turns face into body and nothing into face.
    assert np.all((labels["hand"] == 6) <= (labels[None] == 6))
    mouth = figure.face.at(pose, 0, appearance.mouth_y + 0.03, 0.62)
    spot = place.mapXY(*mouth)
    assert labels[None][int(spot.y()), int(spot.x())] == 6
    assert labels["hand"][int(spot.y()), int(spot.x())] == 5


def test_masks_lie_on_the_people_of_the_encoded_video(crowd: Path) -> None:
    """Where a frame differs from the same frame without people, there is mask, and only there."""
    settings = _settings(crowd)
    population = load_or_discover(crowd, settings, 1)
    for folder, truth in list(truths(crowd))[:4]:
        script = write_script(settings, population, truth["clip"])
        tracks = [np.zeros((160, 4), np.float32) for _ in script.people]
        empty = Stage(settings, population, script, tracks)
        empty._figures = []
        empty._grain = None
        decoded, _ = frames_of(folder)
        masks = masks_of(folder)
        for number, view in enumerate(empty.frames()):
            if number % 10:
                continue
            change = decoded[number].astype(float) - view.pixels[..., :3]
            apart = np.abs(gaussian_filter(change, (1.5, 1.5, 0))).max(-1) > 15
            people = masks[number] > 0
            # A person may wear the background's colour; nobody shows where there is no mask.
            assert np.mean(apart[~binary_dilation(people, iterations=5)]) < 0.01
            assert np.mean(apart[people]) > 0.5


def _settings(corpus: Path) -> RenderSettings:
    record = json.loads((corpus / "talkers.json").read_bytes())["settings"]
    return RenderSettings(**{**record, "speech": None})


def test_frames_of_the_file_are_those_drawn_at_their_time(crowd: Path) -> None:
    """Decoded frames are most like those drawn for their presentation times."""
    settings = _settings(crowd)
    population = load_or_discover(crowd, settings, 1)
    late = []
    for folder, truth in truths(crowd):
        script = write_script(settings, population, truth["clip"])
        clip_audio = mix(settings, population, script)
        stage = Stage(settings, population, script, clip_audio.mouth_tracks)
        drawn = [_smooth(view.pixels[..., :3]) for view in stage.frames()]
        decoded, times = frames_of(folder)
        assert times == pytest.approx(np.arange(settings.frames) / settings.frame_rate, abs=1e-4)
        for number, frame in enumerate(map(_smooth, decoded)):
            around = range(max(0, number - 2), min(len(drawn), number + 3))
            apart = {n: _apart(frame, drawn[n]) for n in around}
            moves = min(_apart(drawn[number], drawn[n]) for n in around if n != number)
            if moves > apart[number]:  # less movement is lost in coding
                late.append(number - min(apart, key=lambda n: apart[n]))
    assert len(late) > 20
    assert not any(late)


def _apart(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.mean((first - second) ** 2))


def _smooth(frame: np.ndarray) -> np.ndarray:
    """Without the grain, which coding takes for its own."""
    smooth: np.ndarray = gaussian_filter(frame.astype(float), (1, 1, 0))
    return smooth


def test_the_sound_of_the_file_is_the_mixture_in_step(crowd: Path) -> None:
    for folder, _ in truths(crowd):
        mixture, _ = soundfile.read(str(folder / "mixture.flac"), dtype="float32")
        if np.abs(mixture).max() > 0.01:
            assert abs(audio_lag(folder / f"{folder.name}.mp4", mixture)) <= 0.001


def test_the_mixture_is_exactly_the_sum_of_its_parts(crowd: Path) -> None:
    kinds = set()
    for folder, truth in truths(crowd):
        parts = [sound_of(folder / p["voice"]) for p in truth["people"]]
        for name in ("off-screen", "background"):
            if (folder / f"{name}.flac").exists():
                parts.append(sound_of(folder / f"{name}.flac"))
                kinds.add(name)
        assert (folder / "off-screen.flac").exists() == (truth["off_screen"] is not None)
        mixture = sound_of(folder / "mixture.flac").astype(int)
        assert np.array_equal(mixture, np.sum(parts, axis=0, dtype=int))
        assert len(mixture) == round(truth["seconds"] * 16_000)
        assert np.abs(mixture).max() < 32_000
    assert kinds == {"off-screen", "background"}


def test_the_silent_are_silent_and_move_their_mouth(crowd: Path) -> None:
    silent = 0
    for folder, truth in truths(crowd):
        for person in truth["people"]:
            voice = sound_of(folder / person["voice"])
            if person["role"] == "silent":
                silent += 1
                assert not voice.any()
                assert person["speaking"] == []
                assert np.ptp(person["mouth_opening"]) > 0.04
            else:
                assert np.abs(voice).max() > 300
                assert person["speaking"]
    assert silent >= 3


def test_speaking_spans_hold_the_voice(crowd: Path) -> None:
    for folder, truth in truths(crowd):
        for person in truth["people"]:
            voice = sound_of(folder / person["voice"]).astype(float)
            inside = np.zeros(len(voice), bool)
            for start, end in person["speaking"]:
                inside[round(start * 16_000) : round(end * 16_000)] = True
            if voice.any():
                assert np.sum(voice[inside] ** 2) > 0.995 * np.sum(voice**2)


def test_mouth_boxes_lie_on_faces(crowd: Path) -> None:
    hidden = seen = 0
    for folder, truth in truths(crowd):
        masks = masks_of(folder)
        assert len(masks) == truth["frames"]
        for person in truth["people"]:
            for number, (box, visible, yaw) in enumerate(
                zip(
                    person["mouth_boxes"], person["mouth_visible"], person["yaw_degrees"],
                    strict=True,
                )
            ):  # fmt: skip
                x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                high, wide = truth["frame_size"]
                inside = 0 <= x < wide and 0 <= y < high
                face = inside and masks[number][int(y), int(x)] == person["mask_values"]["face"]
                assert face == visible
                assert (2 if abs(yaw) <= 20 else 1) < box[2] - box[0] < high / 3
                seen, hidden = seen + visible, hidden + (not visible)
    assert seen > 100
    assert hidden > 20


def test_labels_name_what_is_there(crowd: Path) -> None:
    labels_of_corpus: set[str] = set()
    for folder, truth in truths(crowd):
        labels = set(truth["labels"])
        labels_of_corpus |= labels
        assert f"people-{len(truth['people'])}" in labels
        talking = [p for p in truth["people"] if p["role"] == "speaking"]
        assert ("desync" in labels) == (truth["shift_ms"] != 0 and bool(talking))
        assert ("speaking" in labels) == bool(talking)
        assert ("noise" in labels) == (truth["noise"] is not None)
        assert ("mouth_occlusion" in labels) == any(p["cover"] for p in truth["people"])
        assert ("gestures" in labels) == any(p["gesture"] for p in truth["people"])
        assert ("crossings" in labels) == any(p["walk"] for p in truth["people"])
        turned = any(np.abs(p["yaw_degrees"]).max() > 28 for p in truth["people"])
        assert ("profiles" in labels) >= turned
        assert ("distractors" in labels) == bool(truth["objects"])
        values = {v for p in truth["people"] for v in p["mask_values"].values()}
        assert set(np.unique(masks_of(folder))) <= {0} | values
    assert {"desync", "noise", "music", "silent", "speaking", "mouth_occlusion"} <= labels_of_corpus


@pytest.mark.parametrize("lead", [0.3, -0.45])
@pytest.mark.parametrize("source", ["espeak", "recordings"])
def test_shifted_audio_is_the_same_audio_at_another_time(
    speech: Path, source: str, lead: float
) -> None:
    """Against a longer clip in step, of which video and audio are cut at different times."""
    voice: EspeakVoice | RecordedVoice = EspeakVoice("de", "f3", 50, 50, 160)
    if source == "recordings":
        file = speech / "set0" / "1-0.wav"
        recording = SpeechRecording("set0/1-0.wav", file.stat().st_size, 0.0, 3.0, -30.0)
        voice = RecordedVoice(str(speech), (recording,))
    length, margin = 2.0, abs(lead)
    shifted = place_speech(voice, ((0.0, length),), length, lead, np.random.default_rng(1))
    whole = place_speech(
        voice, ((0.0, length + margin),), length + margin, 0.0, np.random.default_rng(1)
    )
    first, step = (round(max(x, 0) * rate) for x, rate in ((lead, 16_000), (-lead, 100)))
    assert np.array_equal(shifted.waveform, whole.waveform[first : first + 32_000])
    assert np.array_equal(shifted.mouth_track, whole.mouth_track[step : step + 200])
    assert shifted.waveform.any()
    assert shifted.mouth_track.any()


def test_shifted_clips_are_shifted_by_what_they_say(tmp_path: Path, speech: Path) -> None:
    """In the files: the mouth goes with the voice best at the shift that is written."""
    share = {"valid_share": 0.0, "test_share": 0.0, "silent": 0.0, "pauses": 0.0}
    assert render(
        tmp_path / "out", 3, speech=str(speech), desync=1.0, seconds=4.0, frame_rate=50, **share
    ) == 0  # fmt: skip
    reach = 40
    lags = range(-reach, reach + 1)
    for path, truth in truths(tmp_path / "out"):
        person = truth["people"][0]
        level = envelope(sound_of(path / person["voice"]) / 32768.0, 16_000, truth["frames"], 50)
        opening = np.array(person["mouth_opening"])
        inner = slice(reach, len(opening) - reach)
        correlations = [
            correlation(opening[inner], level[reach + n : len(level) - reach + n]) for n in lags
        ]
        late = 20 * lags[int(np.argmax(correlations))]
        assert 120 <= abs(truth["shift_ms"]) <= 600
        assert abs(late - truth["shift_ms"]) <= 40


def test_a_speaker_keeps_appearance_and_voice_over_all_clips() -> None:
    settings = RenderSettings(speakers=4, valid_share=0, test_share=0)
    from cavmae.datasets.synthetic.speaker_discovery import _espeak_auditions

    speaker_voices = {name: (a.voice, 100.0) for name, a in _espeak_auditions(settings).items()}
    first = Population.from_voices(settings, speaker_voices)  # type: ignore[arg-type]
    second = Population.from_voices(
        dataclasses.replace(settings), dict(reversed(speaker_voices.items()))
    )  # type: ignore[arg-type]
    assert first.speakers == second.speakers
    mains = [first.main_speaker(clip).id for clip in range(8)]
    assert sorted(mains[:4]) == sorted(mains[4:]) == sorted(speaker_voices)
