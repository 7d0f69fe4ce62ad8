"""Movement of people, and who is left out because they stand still."""

import itertools
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from cavmae.common.boxes import WHOLE
from cavmae.datasets.media.playback import SAMPLES
from cavmae.finetune.inference.detections import DetectedPerson, Movement
from cavmae.finetune.inference.movement import FRAME_STEP, measure_movements, stands_still
from cavmae.finetune.inference.predictor import Cue, PreparedMixture
from cavmae.finetune.inference.progress import ignore_progress
from cavmae.finetune.inference.result_arrays import collect_arrays
from cavmae.finetune.inference.separation import SeparatedRecording, separate_media
from cavmae.finetune.inference.settings import SeparateSettings, Thresholds
from cavmae.finetune.inference.shots import interpolate_masks, split_at_cuts
from cavmae.finetune.inference.sources import ArraySource
from cavmae.finetune.inference.views import Letterbox, WindowView
from tests.finetune.inference.predictors import make_predictor

LENGTH = 16
KEYS = np.array([2, 6, 10, 14])
LEAST = Thresholds().min_movement_fraction


def texture(seed: int, size: tuple[int, int] = (96, 160)) -> np.ndarray:
    """A picture with edges of a few pixels' width, 0 to 1."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=size), 3.0, mode="wrap")
    return (smooth - smooth.min()) / np.ptp(smooth)


def film(picture: np.ndarray, step: float, place: slice, contrast: float = 200.0) -> torch.Tensor:
    """Grey frames in which the columns of a place move by so many pixels in each comparison."""
    frames = []
    for number in range(LENGTH):
        frame = picture.copy()
        shifted = ndimage.shift(picture, (0, number / FRAME_STEP * step), order=3, mode="grid-wrap")
        frame[:, place] = shifted[:, place]
        frames.append(20 + contrast * frame)
    return torch.from_numpy(np.round(frames).clip(0, 255).astype(np.uint8))


def mask(rows: slice, columns: slice, size: tuple[int, int] = (24, 40)) -> np.ndarray:
    masks = np.zeros((len(KEYS), *size), np.uint8)
    masks[:, rows, columns] = 255
    return masks


LEFT, RIGHT = slice(0, 80), slice(80, 160)
PERSON, CHAIR = mask(slice(4, 24), slice(4, 16)), mask(slice(4, 24), slice(24, 36))
PICTURE = Letterbox((0, 0, 96, 160), (0, 0, 24, 40), (24, 40))


def movements(frames: torch.Tensor, *masks: np.ndarray) -> list[Movement]:
    measured = measure_movements(frames, PICTURE, masks, KEYS)
    assert None not in measured
    return [movement for movement in measured if movement is not None]


@pytest.mark.parametrize("seed", range(5))
def test_movements_are_those_of_a_naive_loop(seed: int) -> None:
    """Beside black bars, with masks that change, and a cut."""
    rng = np.random.default_rng(seed)
    letterbox = Letterbox.of(WHOLE, (90, 160), (32, 48))
    assert letterbox.inner != (0, 0, *letterbox.size)
    grey = torch.from_numpy(rng.integers(0, 256, (LENGTH, 32, 48), np.uint8))
    top, left, height, width = letterbox.inner
    masks = [rng.integers(0, 256, (4, height, width), np.uint8) for _ in range(2)]
    cuts = (7,)
    first, last, across, beyond = 4 * top, 4 * (top + height), 4 * left, 4 * (left + width)
    frames = list(range(0, LENGTH, FRAME_STEP))
    pictures = []
    for frame in frames:
        picture = grey[frame, first:last, across:beyond].numpy().astype(float)
        pictures.append(
            np.array(
                [
                    [picture[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for x in range(2 * width)]
                    for y in range(2 * height)
                ]
            )
        )
    for masks_of_one, movement in zip(
        masks, measure_movements(grey, letterbox, masks, KEYS, cuts), strict=True
    ):
        visible = interpolate_masks(masks_of_one, np.array(frames), KEYS, cuts) > 0.5
        rows = [np.flatnonzero(m.any(1)) for m in visible]
        sums = {"own": [0.0, 0.0], "upper": [0.0, 0.0], "rest": [0.0, 0.0]}
        for then, now in itertools.pairwise(range(len(frames))):
            if frames[then] < cuts[0] <= frames[now]:
                continue
            down, over = np.gradient(pictures[now])
            for y, x in itertools.product(range(height), range(width)):
                cell = np.s_[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                change = np.abs(pictures[now] - pictures[then])[cell].mean()
                gradient = np.hypot(down, over)[cell].mean()
                parts = []
                if visible[then][y, x] and visible[now][y, x]:
                    parts.append("own")
                    if all(y in rows[n][: int(0.4 * len(rows[n]))] for n in (then, now)):
                        parts.append("upper")
                elif not visible[then][y, x] and not visible[now][y, x]:
                    parts.append("rest")
                for part in parts:
                    sums[part] = [sums[part][0] + change, sums[part][1] + gradient]
        size = 2 * np.mean([len(r) for r in rows if len(r)])
        flow = {part: change / gradient / size for part, (change, gradient) in sums.items()}
        assert movement is not None
        assert movement.own == pytest.approx(max(flow["own"], flow["upper"]), rel=1e-4)
        assert movement.rest == pytest.approx(flow["rest"], rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_movement_is_the_way_over_the_height(seed: int) -> None:
    """Of 80 pixels' height; only what moves across an edge changes a pixel."""
    ways = 0.5, 1.0, 2.0
    measured = [movements(film(texture(seed), way, LEFT), PERSON, CHAIR) for way in ways]
    for way, (person, chair) in zip(ways, measured, strict=True):
        assert 0.4 * way / 80 < person.own < way / 80
        assert chair.own == 0.0
        assert chair.rest > 0.3 * person.own  # the person is in the rest of the chair's picture
    assert measured[1][0].own == pytest.approx(2 * measured[0][0].own, rel=0.15)
    assert measured[2][0].own == pytest.approx(2 * measured[1][0].own, rel=0.15)


def test_contrast_and_size_change_nothing() -> None:
    picture = texture(0)
    plain = movements(film(picture, 1.0, LEFT), PERSON)[0]
    faint = movements(film(picture, 1.0, LEFT, contrast=60.0), PERSON)[0]
    assert faint.own == pytest.approx(plain.own, rel=0.1)
    large = film(ndimage.zoom(picture, 2, order=1, mode="grid-wrap", grid_mode=True), 2.0,
                 slice(0, 160))  # fmt: skip
    (twice,) = measure_movements(large, PICTURE, [PERSON], KEYS)
    assert twice is not None
    assert twice.own == pytest.approx(plain.own, rel=0.15)


def test_a_head_that_moves_is_enough() -> None:
    """Above clothes with a pattern that stand still."""
    picture, rows = texture(6), slice(16, 40)
    moving = film(picture, 1.0, LEFT)
    still = film(picture, 0.0, LEFT)
    head = still.clone()
    head[:, rows] = moving[:, rows]
    (whole,), (upper,) = movements(moving, PERSON), movements(head, PERSON)
    assert upper.own == pytest.approx(whole.own, rel=0.4)
    foot = still.clone()
    foot[:, 80:] = moving[:, 80:]
    assert movements(foot, PERSON)[0].own < 0.4 * whole.own
    # A speck far above does not take the head's part.
    with_speck = PERSON.copy()
    with_speck[:, 0, 4] = 255
    assert movements(head, with_speck)[0].own > 0.5 * upper.own
    above = still.clone()
    above[:, :8] = moving[:, :8]
    assert movements(above, with_speck)[0].own < 0.1 * whole.own


def test_a_cut_is_no_movement() -> None:
    first, then = film(texture(1), 1.0, RIGHT), film(texture(2), 1.0, RIGHT)
    frames = torch.cat([first[:7], then[7:]])
    (measured,) = measure_movements(frames, PICTURE, [PERSON], KEYS, (7,))
    assert measured is not None
    assert measured.own == 0.0
    assert measured.rest > 0.0
    (without,) = measure_movements(frames, PICTURE, [PERSON], KEYS)
    assert without is not None
    assert without.own > 10 * LEAST


@pytest.mark.parametrize("held", [6, 11])
def test_repeated_frames_say_nothing(held: int) -> None:
    """As after the end of a recording, or while the picture freezes."""
    moving = film(texture(1), 1.0, LEFT)
    keys = np.array([4, 12, 20, 28])
    frozen = torch.cat([moving[:held], moving[held - 1].expand(32 - held, -1, -1)])
    (plain,) = measure_movements(moving[:held], PICTURE, [PERSON], keys)
    (then,) = measure_movements(frozen, PICTURE, [PERSON], keys)
    assert plain is not None
    assert then is not None
    assert then.own == pytest.approx(plain.own, rel=0.05)


def test_what_cannot_be_measured() -> None:
    moving = film(texture(3), 1.0, LEFT)
    nowhere, everywhere = mask(slice(0), slice(0)), mask(slice(None), slice(None))
    never_twice = PERSON.copy()
    never_twice[1:] = 0
    for masks in (nowhere, everywhere, never_twice):
        assert measure_movements(moving, PICTURE, [masks], KEYS) == [None]
    flat = torch.arange(LENGTH, dtype=torch.uint8)[:, None, None].expand_as(moving)
    assert measure_movements(flat, PICTURE, [PERSON], KEYS) == [None]
    still = film(texture(3), 0.0, LEFT)
    assert measure_movements(still, PICTURE, [PERSON], KEYS) == [None]
    assert measure_movements(moving[:FRAME_STEP], PICTURE, [PERSON], KEYS) == [None]
    thin = Letterbox((0, 0, 10, 1600), (11, 0, 1, 40), (24, 40))
    slim = torch.zeros(LENGTH, 48, 80, dtype=torch.uint8)
    assert measure_movements(slim, thin, [PERSON[:, :1]], KEYS) == [None]
    assert measure_movements(moving, PICTURE, [], KEYS) == []


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([], False),
        ([None, None], False),
        ([Movement(0.5 * LEAST, 3 * LEAST)], True),
        ([Movement(0.5 * LEAST, 3 * LEAST), None], True),
        ([Movement(0.5 * LEAST, 0.9 * LEAST)], False),  # the whole picture stands still
        ([Movement(0.01 * LEAST, 0.05 * LEAST)], False),  # likewise, but for its compression
        ([Movement(0.9 * LEAST, 1.5 * LEAST)], False),
        ([Movement(2 * LEAST, 9 * LEAST)], False),
        ([Movement(0.1 * LEAST, 3 * LEAST)] * 3 + [Movement(5 * LEAST, 3 * LEAST)], False),
        ([Movement(0.1 * LEAST, 3 * LEAST)] * 7 + [Movement(2 * LEAST, 3 * LEAST)], True),
        # Who listens for long, and speaks once.
        ([Movement(0.1 * LEAST, 3 * LEAST)] * 70 + [Movement(4 * LEAST, 3 * LEAST)], False),
    ],
)
def test_who_stands_still(measured: list[Movement | None], expected: bool) -> None:
    assert stands_still(measured, LEAST) == expected
    assert not stands_still(measured, 0.0)


def detection(slot: int, columns: slice, keys: np.ndarray, voice: np.ndarray) -> DetectedPerson:
    """Detection of a person in some of 20 columns, over 16 frames."""
    masks = np.zeros((len(keys), 12, 20), np.uint8)
    masks[:, 1:12, columns] = 255
    active, still = np.ones(LENGTH, np.float32), np.zeros(LENGTH, np.float32)
    colors = np.zeros((len(keys), 1, 1, 64), np.float32)
    return DetectedPerson(slot, 0.9, active, WHOLE, masks, voice, colors, still)


def shrill(wave: np.ndarray) -> np.ndarray:
    """High frequencies of a waveform."""
    return np.diff(wave, prepend=wave[:1]) / 2


class TwoPeople:
    """A predictor of somebody on the left, and somebody with a shrill voice on the right.

    Args:
        thresholds: of the separation.
    """

    def __init__(self, thresholds: Thresholds):
        real = make_predictor()
        self.config, self.keys, self.thresholds = real.config, real.keys, thresholds
        self.prepare, self.sizes = real.prepare, real.sizes
        self.device, self.is_large = real.device, real.is_large
        self.encode_key_views, self.class_number = real.encode_key_views, real.class_number
        self.voice_distance = real.voice_distance

    def predict(
        self, view: WindowView, mixture: PreparedMixture, cue: Cue | None = None, *_: object
    ) -> list[DetectedPerson]:
        wave = mixture.wave[0].numpy()
        voices = wave - shrill(wave), shrill(wave)
        slots = (0, 1) if cue is None else (1, 0)
        places = slice(2, 8), slice(13, 19)
        return [
            detection(slot, columns, self.keys, voice)
            for slot, columns, voice in zip(slots, places, voices, strict=True)
        ]


def separated(
    folder: Path, way: float, cue: Cue | None = None, **thresholds: float
) -> SeparatedRecording:
    """Of 4 s in which the left half of the picture moves."""
    picture = texture(5)
    grey = []
    for number in range(100):
        frame = 40 + 150 * picture
        moved = np.roll(picture, round(way * 5 * np.sin(number / 3)), 1)
        frame[:, LEFT] = 40 + 150 * moved[:, LEFT]
        grey.append(frame)
    frames = np.repeat(np.array(grey).astype(np.uint8)[..., None], 3, axis=3)
    wave = np.random.default_rng(0).normal(size=64_000).astype(np.float32) * 0.1
    media = ArraySource(frames, wave, 16_000, 25.0, (96, 160))
    folder.mkdir()
    predictor = TwoPeople(Thresholds(**thresholds))
    options = SeparateSettings(second_look=False, av_offset=0.0)
    result = separate_media(
        predictor, "made", media, 0, folder, options, cue, ignore_progress  # type: ignore[arg-type]
    )  # fmt: skip
    total = sum((voice[:] for voice in result.voices.values()), result.residual[:])
    np.testing.assert_allclose(total, wave, atol=1e-6)
    return result


def test_who_stands_still_in_a_picture_that_moves_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    result = separated(tmp_path / "moving", 1.0)
    assert len(result.people) == 1
    assert result.records[1]["boxes"][0]["box"][2] < 0.5  # who is on the left
    (remark,) = result.remarks
    arrays = collect_arrays(result, (100, 96, 160), 25.0, 64_000, 16_000, False, ignore_progress)
    assert arrays.remarks == result.remarks
    assert remark.startswith("somebody who stands still while the picture moves")
    assert "--thresholds.min-movement-fraction 0" in remark
    assert remark in caplog.text
    target = re.search(r"--target.box (0\.65),[^ ]+ --target.time ([^ ]+) separates", remark)
    assert target is not None
    assert 0 <= float(target[2]) < 1
    kept = separated(tmp_path / "kept", 1.0, min_movement_fraction=0.0)
    assert len(kept.people) == 2
    assert kept.remarks == ()


def test_who_stands_still_in_a_still_picture_is_kept(tmp_path: Path) -> None:
    result = separated(tmp_path / "still", 0.0)
    assert len(result.people) == 2
    assert result.remarks == ()


@pytest.mark.parametrize(
    "cue",
    [
        Cue("box", time=1.0, box=(0.65, 0.1, 0.95, 1.0)),
        Cue("voice", voice=shrill(np.random.default_rng(1).normal(size=16_000)).astype(np.float32)),
    ],
    ids=["box", "voice"],
)
def test_a_target_that_stands_still_is_kept(cue: Cue, tmp_path: Path) -> None:
    result = separated(tmp_path / "target", 1.0, cue)
    assert len(result.people) == 1
    assert result.records[1]["boxes"][0]["box"][0] > 0.5
    assert result.remarks == ()


def test_movement_around_a_cut_says_nothing_of_who_is_there_before_it() -> None:
    person = detection(0, slice(2, 8), KEYS, np.zeros(LENGTH * SAMPLES, np.float32))
    person = person._replace(movement=Movement(0.0, 1.0))
    for cuts, expected in (((8,), [None, None]), ((), [person.movement])):
        assert [p.movement for p in split_at_cuts([person], cuts, KEYS, 0.002)] == expected
