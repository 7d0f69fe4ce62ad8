"""Movement of heads, eyes and cameras: smooth noise and blinks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d

from cavmae.datasets.synthetic.projection import DEGREES
from cavmae.datasets.synthetic.staging import Turn, Walk

TURNING = 0.4  # s: a head takes this long to turn
MOST_YAW = 60 / DEGREES
STEPS, BOB = 1.9, 0.06  # of a walk: steps a second, rise of each in head heights
BLINKS = 0.3  # a second
BLINK = 0.07  # s: standard deviation of a blink's course


class Poses(NamedTuple):
    """Movements of one head, float64 [frames] each.

    Attributes:
        yaw: in units of 20 degrees, positive to the right of the frame: -1 to 1, and up to 3 in
            turns to profile.
        pitch: -1 to 1, bent down.
        roll: degrees, clockwise.
        dx, dy: shift of the head, as a fraction of its height.
        blink: 0 open to 1 closed.
        brow: -1 frowning to 1 raised.
        gaze_x, gaze_y: -1 to 1.
        breath: -1 to 1.
    """

    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    blink: np.ndarray
    brow: np.ndarray
    gaze_x: np.ndarray
    gaze_y: np.ndarray
    breath: np.ndarray


def smooth_noise(frames: int, rate: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth Gaussian noise of unit variance, float64 [frames], correlated over ``seconds``."""
    sigma = max(seconds * rate, 1.0)
    pad = int(4 * sigma)
    smooth = gaussian_filter1d(rng.normal(size=frames + 2 * pad), sigma, mode="wrap")
    # Gaussian smoothing of white noise leaves a variance of 1 / (2 sqrt(pi) sigma).
    noise: np.ndarray = smooth[pad : pad + frames] * np.sqrt(2 * np.sqrt(np.pi) * sigma)
    return noise


def spans_weight(
    spans: Sequence[tuple[float, float]], times: np.ndarray, ramp: float
) -> np.ndarray:
    """Weight of being within one of the spans, float64 [frames]: 0 outside to 1 inside.

    Args:
        spans: [start, end] in seconds; one that reaches an end of the clip has no ramp there.
        times: of the frames in seconds.
        ramp: duration in seconds of the way up before a span, and down after it.
    """
    position = np.zeros(len(times))
    for start, end in spans:
        up = np.ones(len(times)) if start <= 0 else np.clip((times - start) / ramp + 1, 0, 1)
        later = end >= times[-1]
        down = np.ones(len(times)) if later else np.clip((end - times) / ramp + 1, 0, 1)
        position = np.maximum(position, up * down)
    smooth: np.ndarray = position * position * (3 - 2 * position)
    return smooth


def turned(poses: Poses, turn: Turn, times: np.ndarray) -> Poses:
    """Poses whose head turns away for the turn's spans.

    Args:
        times: of the frames in seconds.
    """
    weight = spans_weight(turn.spans, times, TURNING)
    away = turn.degrees / DEGREES + 0.25 * poses.yaw
    yaw = (1 - weight) * poses.yaw + weight * away
    return poses._replace(yaw=np.clip(yaw, -MOST_YAW, MOST_YAW))


def walk_course(walk: Walk, x: float, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Course of a walk: x as a fraction of the width, and the rise of each step, float64 [frames].

    Args:
        x: at its start.
        times: of the frames in seconds.

    Returns:
        x, and dy in head heights.
    """
    part = np.clip((times - walk.start) / (walk.end - walk.start), 0, 1)
    smooth = part * part * (3 - 2 * part)
    speed = 4 * part * (1 - part)
    bob = -BOB * speed * np.abs(np.sin(np.pi * STEPS * (times - walk.start)))
    return x + smooth * (walk.x - x), bob


def draw_poses(frames: int, rate: float, rng: np.random.Generator) -> Poses:
    """Draw a head's movements over a clip, independent of its speech."""

    def noise(amount: float, seconds: float) -> np.ndarray:
        return amount * smooth_noise(frames, rate, seconds, rng)

    lively = rng.uniform(0.5, 1.4)
    time = np.arange(frames) / rate
    blink = np.zeros(frames)
    for _ in range(rng.poisson(BLINKS * frames / rate)):
        blink += np.exp(-0.5 * ((time - rng.uniform(0, frames / rate)) / BLINK) ** 2)
    nod = noise(0.35, 0.12) * np.clip(noise(1.0, 0.7), 0, 1)
    return Poses(
        yaw=np.clip(rng.normal(0, 0.25) + lively * noise(0.25, 0.5), -1, 1),
        pitch=np.clip(rng.normal(0, 0.15) + lively * noise(0.2, 0.45) + lively * nod, -1, 1),
        roll=rng.normal(0, 2) + lively * noise(2.5, 0.6),
        dx=lively * noise(0.02, 0.6),
        dy=lively * noise(0.012, 0.5),
        blink=np.clip(blink, 0, 1),
        brow=np.clip(noise(0.5, 0.4), -1, 1),
        gaze_x=np.clip(noise(0.6, 0.3), -1, 1),
        gaze_y=np.clip(noise(0.3, 0.3), -1, 1),
        breath=np.sin(2 * np.pi * (rng.uniform(0.2, 0.35) * time + rng.uniform())),
    )


class Camera(NamedTuple):
    """Movement and image quality of a camera.

    Attributes:
        dx, dy: shake, float64 [frames], as a fraction of the frame's height.
        roll: degrees, float64 [frames].
        light: brightness, float64 [frames], around 1.
        tint: multiplies red, green and blue.
        shadow: direction of the light in degrees, and its strength 0 to 1.
        blur: standard deviation in pixels of a frame 224 high.
        grain: standard deviation of the noise, of 255.
    """

    dx: np.ndarray
    dy: np.ndarray
    roll: np.ndarray
    light: np.ndarray
    tint: tuple[float, float, float]
    shadow: tuple[float, float]
    blur: float
    grain: float


def draw_camera(frames: int, rate: float, rng: np.random.Generator) -> Camera:
    """Draw a random camera: static or hand-held, of good or poor image quality."""
    shake = float(rng.choice([0.0, 0.0015, 0.006], p=[0.4, 0.35, 0.25]))

    def noise(amount: float, seconds: float) -> np.ndarray:
        return amount * smooth_noise(frames, rate, seconds, rng)

    warm = rng.normal(0, 0.05)
    flicker = float(rng.choice([0.0, 0.01, 0.04]))
    return Camera(
        dx=noise(shake, 0.3),
        dy=noise(shake, 0.3),
        roll=noise(shake * 60, 0.4),
        light=np.clip(rng.uniform(0.72, 1.08) + noise(flicker, 0.3), 0.5, 1.2),
        tint=(1 + warm, 1.0, 1 - warm),
        shadow=(float(rng.uniform(0, 360)), float(rng.uniform(0, 0.5))),
        blur=float(rng.choice([0.0, rng.uniform(0.3, 0.9)], p=[0.7, 0.3])),
        grain=float(rng.choice([0.0, rng.uniform(1, 4), rng.uniform(4, 9)], p=[0.4, 0.4, 0.2])),
    )
