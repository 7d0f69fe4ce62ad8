"""Turned heads, gestures, walks, depth, scenery and distractors."""

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from cavmae.datasets.synthetic.appearance import HAIR_STYLES, draw_appearance
from cavmae.datasets.synthetic.canvas import Canvas, oval, paint, placement
from cavmae.datasets.synthetic.espeak import EspeakVoice
from cavmae.datasets.synthetic.face import Pose
from cavmae.datasets.synthetic.figure import Figure
from cavmae.datasets.synthetic.hands import LoneArm, draw_hand_tracks
from cavmae.datasets.synthetic.motion import walk_course
from cavmae.datasets.synthetic.population import Population
from cavmae.datasets.synthetic.projection import project
from cavmae.datasets.synthetic.script import Script, write_script
from cavmae.datasets.synthetic.settings import CASES, SCENE_CASES, RenderSettings
from cavmae.datasets.synthetic.stage import Stage
from cavmae.datasets.synthetic.staging import EDGES, Gesture, LoneHand, Walk, draw_staging

SPOTS = [(0.25, 0.46, 0.45), (0.75, 0.5, 0.5)]
PLAIN = dict.fromkeys(SCENE_CASES, 0.0)
TIMES = np.arange(25) / 25


def scene(clip: int = 0, **changes: object) -> tuple[RenderSettings, Population, Script]:
    settings = RenderSettings(
        **{"people": "2", "seconds": 1.0, "height": 96, "valid_share": 0.0, "test_share": 0.0}
        | PLAIN | changes
    )  # type: ignore[arg-type]  # fmt: skip
    voices = {f"s{n}": (EspeakVoice("en", "f1", 50, 50, 150), 100.0 + n) for n in range(4)}
    population = Population.from_voices(settings, voices)  # type: ignore[arg-type]
    return settings, population, write_script(settings, population, clip)


def stage_of(settings: RenderSettings, population: Population, script: Script) -> Stage:
    tracks = [np.full((100, 4), 0.3, np.float32) for _ in script.people]
    return Stage(settings, population, script, tracks)


@pytest.mark.parametrize("yaw", [-3.0, -1.7, 1.2, 2.3, 3.0])
def test_masks_and_mouths_of_turned_people(yaw: float) -> None:
    """All of a person is mask, nothing else is, and the mouth lies on the visible face."""
    for number, style in enumerate(HAIR_STYLES):
        appearance = dataclasses.replace(
            draw_appearance(number, 1), style=style, beard=("none", "full", "goatee")[number % 3]
        )
        gesture = Gesture("both", ((0.0, 1.0),), False)
        tracks = draw_hand_tracks(gesture, appearance, TIMES, np.random.default_rng(number))
        figure = Figure(appearance, (1, 2), 0.3, None, tracks, surface=number)
        canvas = Canvas((200, 200))
        pose = Pose(yaw, 0.2, 0.0, 0.0, 0.0, 0.0)
        with canvas.transformed(placement(100, 70, 4, 80)):
            figure.draw_back(canvas, pose)
            figure.draw_torso(canvas, 0.0)
            figure.draw_neck(canvas, (0.0, 0.0))
            lips = figure.draw_head(canvas, pose, (0.9, 0.2, 0.4, 0.1), 0.0)
            lips.transform(canvas.matrix)
            face = canvas.labels == 2
            figure.draw_hands(canvas, 12)
        box = lips.computeTightBounds()
        assert box.width() > 4
        inside = face[
            round(box.top()) : round(box.bottom()), round(box.left()) : round(box.right())
        ]
        assert inside.mean() > 0.85  # its corners lie in the notches of the profile
        marked, drawn = canvas.labels > 0, canvas.pixels[..., 3]
        assert not np.any((drawn == 255) & ~binary_dilation(marked))
        assert not np.any(marked & (drawn == 0))
        assert np.count_nonzero((drawn > 127) != marked) < 0.01 * marked.sum()


def test_turning_is_smooth_and_keeps_left_and_right() -> None:
    """No jump where the flat drawing passes into the round one, and mirrored turns are equal."""
    for x, near in ((0.0, 1.0), (0.3, 0.0), (-0.3, 0.2), (0.15, 0.45)):
        course = [project(yaw, x, near) for yaw in np.arange(-3, 3.0001, 0.05)]
        assert np.abs(np.diff(course)).max() < 0.03
        assert project(2.2, x, near) == pytest.approx(-project(-2.2, -x, near))
    # The nose leads, the far cheek vanishes behind it.
    assert project(3.0, 0.0, 1.0) > project(3.0, 0.34, 0.0)


def test_at_zero_scenes_are_plain() -> None:
    settings, _, script = scene()
    staging = draw_staging(settings, 5, ["a", "b"], SPOTS)
    assert [(p.x, p.y, p.head) for p in staging.people] == SPOTS
    assert not any(staging.cases().values())
    assert not set(SCENE_CASES) & set(script.labels([True, True]))
    assert staging.lone_hands == ()


@pytest.mark.parametrize("case", SCENE_CASES)
def test_each_case_occurs_alone(case: str) -> None:
    settings, _, _ = scene(**{case: 1.0})
    cases = draw_staging(settings, 3, ["a", "b"], SPOTS).cases()
    expected = {case, "profiles"} if case == "crossings" else {case}  # who walks looks ahead
    assert {name for name, occurs in cases.items() if occurs} == expected


def test_nearer_people_come_later_and_a_walk_ends_beyond_the_other() -> None:
    settings, _, _ = scene(depth=1.0, crossings=1.0)
    for clip in range(30):
        people = draw_staging(settings, clip, ["a", "b"], SPOTS).people
        assert people[0].head <= people[1].head
        walker = next(p for p in people if p.walk is not None)
        other = people[1] if walker is people[0] else people[0]
        assert walker.walk is not None
        assert 0 <= walker.walk.start < walker.walk.end <= settings.length + 1e-9
        assert (walker.walk.x - other.x) * (walker.x - other.x) <= 1e-9
    x, bob = walk_course(Walk(0.2, 0.8, 0.9), 0.1, TIMES)
    assert x[0] == pytest.approx(0.1)
    assert x[-1] == pytest.approx(0.9)
    assert np.all(np.diff(x) >= 0)
    assert np.all(bob <= 0)


def test_who_comes_later_hides_who_is_behind() -> None:
    """Of the person behind only pixels go, and only to the person in front."""
    staged = scene(2, crossings=1.0, gestures=1.0)
    both, behind = stage_of(*staged), stage_of(*staged)
    behind._figures = behind._figures[:1]
    hidden = 0
    for whole, alone in zip(both.frames(), behind.frames(), strict=True):
        front = whole.labels > 2
        assert np.array_equal(np.where(front, 0, whole.labels), np.where(front, 0, alone.labels))
        hidden += np.count_nonzero(front & (alone.labels > 0))
    assert hidden > 500


def test_distractors_are_in_no_mask() -> None:
    """Furniture and posters leave no label."""
    stage = stage_of(*scene(1, distractors=1.0, textured_backgrounds=1.0))
    stage._figures = []
    assert not any(view.labels.any() for view in stage.frames())


@pytest.mark.parametrize("size", [0.25, 1.1])
@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("edge", EDGES)
def test_a_lone_hand_comes_from_beyond_the_edge(edge: str, holds: bool, size: float) -> None:
    """Its visible pixels reach the edge of the frame; outside of its spans there are none."""
    seen = 0
    for seed in range(6):
        hand = LoneHand(edge, 0.6, size, 1 - 2 * (seed % 2), holds, ((0.4, 1.0),), seed)
        arm = LoneArm(hand, (96, 96), TIMES)
        for number in range(len(TIMES)):
            canvas = Canvas((96, 96))
            arm.draw(canvas, number)
            touched = canvas.pixels[..., 3] > 0
            if number == 0:
                assert not touched.any()
            if touched.sum() > 60:
                seen += 1
                reached = {
                    "left": touched[:, 0], "right": touched[:, -1],
                    "top": touched[0], "bottom": touched[-1],
                }  # fmt: skip
                assert reached[edge].any(), (seed, number)
    assert seen > 30


@pytest.mark.parametrize("holds", [False, True])
def test_a_lone_hand_takes_pixels_from_who_is_behind_it(holds: bool) -> None:
    arm = LoneArm(LoneHand("right", 0.6, 0.5, 1, holds, ((0.0, 1.0),), 3), (96, 96), TIMES)
    canvas, alone = Canvas((96, 96)), Canvas((96, 96))
    for painted in (canvas, alone):
        painted.draw(oval(48, 48, 47, 47), paint((0, 0, 0)), 1)
    arm.draw(canvas, 10)
    people = alone.labels > 0
    alone.clear()
    arm.draw(alone, 10)
    solid, touched = alone.pixels[..., 3] == 255, alone.pixels[..., 3] > 0
    taken = people & (canvas.labels == 0)
    assert taken.sum() > 100
    assert not np.any(taken & ~touched)
    assert not np.any(solid & people & ~binary_dilation(taken))


def test_two_lone_hands_are_those_of_one_person() -> None:
    settings, _, _ = scene(without_people=1.0)
    drawn = [draw_staging(settings, clip, [], []).lone_hands for clip in range(40)]
    assert {hands[0].side for hands in drawn if len(hands) == 1} == {-1, 1}
    pairs = [hands for hands in drawn if len(hands) == 2]
    assert pairs
    for one, other in pairs:
        assert one.side == -other.side
        assert (one.seed, one.size) == (other.seed, other.size)


def test_clips_without_people() -> None:
    """Distractors are there in any case; nothing is labelled, nobody is said to be in it."""
    hands = 0
    cases = dict.fromkeys(CASES, 1.0)
    sound_labels = {"off_screen_voice", "noise", "music"}
    for clip in range(20):
        staged = scene(clip, without_people=1.0, **cases)
        script = staged[2]
        assert script.people == ()
        scene_labels = {"background", "distractors", "textured_backgrounds"}
        assert set(script.labels([])) == scene_labels | sound_labels
        hands += bool(script.staging.lone_hands)
        assert script.off_screen is not None
        assert script.noise is not None
        assert script.noise[0] != "babble"
    assert 10 <= hands < 20
    views = [(view.pixels.copy(), view.labels.copy()) for view in stage_of(*staged).frames()]
    assert not any(labels.any() for _, labels in views)
    assert views[0][0].std() > 5
    share = [bool(scene(clip, without_people=0.3)[2].people) for clip in range(300)]
    assert np.mean(share) == pytest.approx(0.7, abs=0.08)
