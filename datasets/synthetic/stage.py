"""Frames of a clip: backdrop, people, camera, light."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import skia

from cavmae.common.boxes import Box
from cavmae.datasets.synthetic import articulation, backdrop, motion, occlusions
from cavmae.datasets.synthetic.appearance import draw_appearance
from cavmae.datasets.synthetic.canvas import Canvas, placement
from cavmae.datasets.synthetic.face import Pose
from cavmae.datasets.synthetic.figure import Figure
from cavmae.datasets.synthetic.hands import LoneArm, draw_hand_tracks
from cavmae.datasets.synthetic.population import Population, rng_for
from cavmae.datasets.synthetic.projection import DEGREES
from cavmae.datasets.synthetic.script import Script
from cavmae.datasets.synthetic.settings import RenderSettings

TORSO_TURN = 0.12  # narrowing of the shoulders a unit of yaw beyond the first
GRAINS = 4  # noise images of a clip, rolled by a random offset in each frame


class CameraView(NamedTuple):
    """A frame with its label mask and mouths.

    Attributes:
        pixels: uint8 [height, width, 4], red, green, blue, unused; overwritten by the next frame.
        labels: uint8 [height, width]: 0 background, 2k - 1 body of person k, 2k their face;
            overwritten by the next frame.
        mouths: box around each person's lips.
        visible: whether the middle of each person's mouth is in view.
    """

    pixels: np.ndarray
    labels: np.ndarray
    mouths: list[Box]
    visible: list[bool]


class Stage:
    """Draws a clip.

    Args:
        tracks: mouth track of each person.
    """

    def __init__(
        self,
        settings: RenderSettings,
        population: Population,
        script: Script,
        tracks: list[np.ndarray],
    ):
        rng = rng_for(settings.seed, "camera", script.clip)
        self._settings, self._script = settings, script
        frames, rate = settings.frames, settings.frame_rate
        self._size = settings.size
        self._camera = motion.draw_camera(frames, rate, rng)
        staging = script.staging
        self._backdrop = backdrop.paint_backdrop(
            self._size, rng, staging.textured_background, staging.objects
        )
        angle, strength = self._camera.shadow
        light = float(np.cos(np.radians(angle)) * (0.3 + strength))
        times = np.arange(frames) / rate
        self._figures: list[Figure] = []
        self._poses: list[motion.Poses] = []
        self.mouths: list[np.ndarray] = []  # float32 [frames, 4] of each person
        self.yaws: list[np.ndarray] = []  # degrees, float64 [frames] of each person
        self._covered: list[np.ndarray] = []
        self._courses: list[tuple[np.ndarray, np.ndarray]] = []  # x, dy of each person
        for number, person in enumerate(script.people):
            person_rng = rng_for(settings.seed, "motion", script.clip, number)
            speaker = population[person.speaker]
            kind = None if person.cover is None else person.cover.kind
            labels = (2 * number + 1, 2 * number + 2)
            appearance = draw_appearance(speaker.family, speaker.appearance_seed)
            poses = motion.draw_poses(frames, rate, person_rng)
            spot = person.staging
            if spot.turn is not None:
                poses = motion.turned(poses, spot.turn, times)
            self._poses.append(poses)
            self.yaws.append(poses.yaw * DEGREES)
            tracks_of_hands = []
            if spot.gesture is not None:
                tracks_of_hands = draw_hand_tracks(spot.gesture, appearance, times, person_rng)
            surface = speaker.family if spot.textured else None
            figure = Figure(appearance, labels, light, kind, tracks_of_hands, surface)
            self._figures.append(figure)
            course = np.full(frames, spot.x), np.zeros(frames)
            if spot.walk is not None:
                course = motion.walk_course(spot.walk, spot.x, times)
            self._courses.append(course)
            self.mouths.append(articulation.at_frames(tracks[number], times))
            covered = np.zeros(frames)
            if person.cover is not None:
                covered = motion.spans_weight(person.cover.spans, times, occlusions.RISE)
            self._covered.append(covered)
        self._lone_arms = [LoneArm(hand, self._size, times) for hand in staging.lone_hands]
        grain = self._camera.grain
        shape = (GRAINS, self._size[1], self._size[0], 1)
        self._grain = np.rint(rng.normal(0, grain, shape)).astype(np.int16) if grain else None
        self._rolls = rng.integers(0, min(self._size), (frames, 2))
        self._canvas = Canvas(self._size)
        self._output = Canvas(self._size)

    def frames(self) -> Iterator[CameraView]:
        """Yield every frame in turn; its arrays are overwritten by the next."""
        for number in range(self._settings.frames):
            mouths = self._draw(number)
            labels = self._canvas.labels
            visible = []
            for person, (left, top, right, bottom) in enumerate(mouths):
                x, y = (left + right) / 2, (top + bottom) / 2
                inside = 0 <= x < self._size[0] and 0 <= y < self._size[1]
                visible.append(bool(inside and labels[int(y), int(x)] == 2 * person + 2))
            yield CameraView(self._finish(number), labels, mouths, visible)

    def _draw(self, number: int) -> list[Box]:
        """Draw backdrop and people; returns mouth boxes."""
        canvas, camera = self._canvas, self._camera
        width, height = self._size
        canvas.clear()
        shake = skia.Matrix()
        shake.setTranslate(camera.dx[number] * height, camera.dy[number] * height)
        shake.preRotate(float(camera.roll[number]), width / 2, height / 2)
        boxes = []
        with canvas.transformed(shake):
            margin = backdrop.margin_pixels(self._size)
            canvas.color_canvas.drawImage(
                self._backdrop, -margin, -margin, skia.SamplingOptions(skia.FilterMode.kLinear)
            )
            for index in range(len(self._figures)):
                boxes.append(self._draw_person(index, number))
        for arm in self._lone_arms:
            arm.draw(canvas, number)
        return boxes

    def _draw_person(self, index: int, number: int) -> Box:
        canvas, figure = self._canvas, self._figures[index]
        person, poses = self._script.people[index], self._poses[index]
        width, height = self._size
        spot = person.staging
        scale = spot.head * height
        course_x, course_dy = self._courses[index]
        x, y = float(course_x[number]) * width, spot.y * height
        y += float(course_dy[number]) * scale
        dx, dy = float(poses.dx[number]), float(poses.dy[number])
        pose = Pose(
            float(poses.yaw[number]),
            float(poses.pitch[number]),
            float(poses.blink[number]),
            float(poses.brow[number]),
            float(poses.gaze_x[number]),
            float(poses.gaze_y[number]),
        )
        head = placement(x + dx * scale, y + dy * scale, float(poses.roll[number]), scale)
        torso = placement(x + 0.3 * dx * scale, y + 0.3 * dy * scale, 0.0, scale)
        torso.preScale(1 - TORSO_TURN * max(abs(pose.yaw) - 1, 0), 1)
        with canvas.transformed(head):
            figure.draw_back(canvas, pose)
        with canvas.transformed(torso):
            figure.draw_torso(canvas, float(poses.breath[number]))
            figure.draw_neck(canvas, (0.7 * dx, 0.7 * dy))
        shape = tuple(float(v) for v in self.mouths[index][number])
        with canvas.transformed(head):
            lips = figure.draw_head(canvas, pose, shape, float(self._covered[index][number]))
            lips.transform(canvas.matrix)
        with canvas.transformed(torso):
            figure.draw_hands(canvas, number)
        bounds = lips.computeTightBounds()
        # As precise as it is written, so that who reads a box looks at the same pixel.
        left, top = round(bounds.left(), 1), round(bounds.top(), 1)
        return left, top, round(bounds.right(), 1), round(bounds.bottom(), 1)

    def _finish(self, number: int) -> np.ndarray:
        """Apply light, blur and noise to the whole frame."""
        camera = self._camera
        width, height = self._size
        canvas = self._output.color_canvas
        filling = skia.Paint()
        r, g, b = (float(np.clip(camera.light[number] * t, 0, 2)) for t in camera.tint)
        matrix = [r, 0, 0, 0, 0, 0, g, 0, 0, 0, 0, 0, b, 0, 0, 0, 0, 0, 1, 0]
        filling.setColorFilter(skia.ColorFilters.Matrix(matrix))
        if camera.blur:
            sigma = camera.blur * height / 224
            filling.setImageFilter(skia.ImageFilters.Blur(sigma, sigma, skia.TileMode.kClamp))
        image = skia.Image.fromarray(self._canvas.pixels, skia.kRGBA_8888_ColorType, copy=False)
        canvas.drawImage(image, 0, 0, skia.SamplingOptions(), filling)
        angle, strength = camera.shadow
        if strength > 0.05:
            dark = skia.Paint()
            reach = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))]) * width / 2
            middle = np.array([width / 2, height / 2])
            ends = [tuple(map(float, middle - reach)), tuple(map(float, middle + reach))]
            tones = [skia.ColorSetARGB(int(150 * strength), 0, 0, 0), skia.ColorTRANSPARENT]
            dark.setShader(skia.GradientShader.MakeLinear(ends, tones))
            canvas.drawRect(skia.Rect(0, 0, width, height), dark)
        pixels = self._output.pixels
        if self._grain is None:
            return pixels
        grain = np.roll(self._grain[number % GRAINS], tuple(self._rolls[number]), axis=(0, 1))
        np.clip(pixels + grain, 0, 255, out=pixels, casting="unsafe")
        return pixels
