"""Impulse responses of rooms: images, their delays and gains, the decay."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from cavmae.datasets.mixtures.rooms import (
    DISTANCE,
    MAX_SIZE,
    MIN_SIZE,
    ORDER,
    REVERBERATION,
    SOUND_SPEED,
    WALL,
    Rooms,
    draw_rooms,
    image_responses,
    room_responses,
)

RATE = 16_000


@pytest.fixture(scope="module")
def rooms() -> Rooms:
    return draw_rooms(24, 2, torch.Generator().manual_seed(0))


def response_by_loops(rooms: Rooms, room: int, place: int, samples: int, order: int) -> Tensor:
    """Allen's and Berkley's sum: images (1 - 2 p) x + 2 m L, with |m - p| + |m| reflections."""
    size, source = rooms.sizes[room].tolist(), rooms.talkers[room, place].tolist()
    microphone = rooms.microphones[room].tolist()
    direct, gain = math.dist(source, microphone), float(rooms.reflection[room])
    response = torch.zeros(samples, dtype=torch.float64)
    axis = [(m, p) for m, p in itertools.product(range(-order, order + 1), (0, 1))]
    for image in itertools.product(axis, repeat=3):
        reflections = [abs(m - p) + abs(m) for m, p in image]
        if max(reflections) > order:
            continue
        place_of = [
            (1 - 2 * p) * x + 2 * m * length
            for (m, p), x, length in zip(image, source, size, strict=True)
        ]
        distance = math.dist(place_of, microphone)
        delay = round((distance - direct) / SOUND_SPEED * RATE)
        if delay < samples:
            response[delay] += gain ** sum(reflections) * direct / distance
    return response.float()


def test_images_equal_a_loop_over_them(rooms: Rooms) -> None:
    responses = image_responses(rooms, 500, 2)
    for room, place in ((0, 0), (5, 1)):
        expected = response_by_loops(rooms, room, place, 500, 2)
        torch.testing.assert_close(responses[room, place], expected)


def test_direct_sound_and_first_reflection_by_hand() -> None:
    """Both 1 m above the floor and 2 m apart: by the floor it is 2 sqrt(2) m."""
    rooms = Rooms(
        torch.tensor([[8.0, 6.0, 3.5]], dtype=torch.float64),
        torch.tensor([0.3], dtype=torch.float64),
        torch.tensor([[3.0, 3.0, 1.0]], dtype=torch.float64),
        torch.tensor([[[5.0, 3.0, 1.0]]], dtype=torch.float64),
    )
    response = room_responses(rooms, 4000, torch.Generator())[0, 0]
    assert response[0] == 1
    delay = round((2 * math.sqrt(2) - 2) / SOUND_SPEED * RATE)
    assert response[1:delay].abs().max() == 0
    # Eyring: T = 24 ln 10 V / (-c S ln(1 - absorption)), absorption = 1 - reflection^2.
    surface, volume = 2 * (48 + 28 + 21), 168
    reflection = math.exp(-12 * math.log(10) * volume / (SOUND_SPEED * surface * 0.3))
    assert float(response[delay]) == pytest.approx(reflection / math.sqrt(2), rel=1e-4)


def test_rooms_lie_within_their_limits(rooms: Rooms) -> None:
    for size, low, high in zip(rooms.sizes.unbind(1), MIN_SIZE, MAX_SIZE, strict=True):
        assert low <= size.min() < size.max() <= high
    assert REVERBERATION[0] <= rooms.reverberation_times.min()
    assert rooms.reverberation_times.max() <= REVERBERATION[1]
    places = torch.cat([rooms.talkers, rooms.microphones[:, None]], 1)
    assert (places >= WALL - 1e-9).all()
    assert (places <= rooms.sizes[:, None] - WALL + 1e-9).all()
    assert DISTANCE[0] <= rooms.distances.min() and rooms.distances.max() <= DISTANCE[1]


def test_images_of_a_higher_order_come_after_the_mixing_time() -> None:
    lowest = torch.tensor([[8.0, 6.0, 2.4], [2.5, 6.0, 3.5]], dtype=torch.float64)
    ends = lowest.new_full((2, 1, 3), 0.3)
    rooms = Rooms(lowest, lowest.new_full((2,), 0.6), ends[:, 0], ends + DISTANCE[1] / 3**0.5)
    samples = round(RATE * float(rooms.mixing_times.min()))
    more = image_responses(rooms, samples, ORDER + 2)
    torch.testing.assert_close(image_responses(rooms, samples, ORDER), more)


def test_the_decay_is_that_of_the_reverberation_time(rooms: Rooms) -> None:
    """Schroeder's backward integral from -5 to -25 dB."""
    responses = room_responses(rooms, 8192, torch.Generator().manual_seed(1))
    energy = responses.square().flip(-1).cumsum(-1).flip(-1)
    levels = 10 * (energy / energy[..., :1]).log10()
    for room, place in itertools.product(range(24), range(2)):
        level = levels[room, place]
        time = ((level < -5) & (level > -25)).nonzero()[:, 0] / RATE
        chosen = level[(level < -5) & (level > -25)]
        slope = torch.cov(torch.stack([time, chosen]))[0, 1] / time.var()
        expected = float(rooms.reverberation_times[room])
        assert float(-60 / slope) == pytest.approx(expected, rel=0.25)


def test_the_tail_continues_the_images(rooms: Rooms) -> None:
    """10 ms before and behind the mixing time, over all rooms: at most 4 dB apart."""
    responses = room_responses(rooms, 8192, torch.Generator().manual_seed(1))
    before, behind = torch.zeros(2)
    for room, time in enumerate(rooms.mixing_times.tolist()):
        join = math.ceil(time * RATE)
        before += responses[room, :, join - 160 : join].square().sum()
        behind += responses[room, :, join : join + 160].square().sum()
    assert 0 < 10 * (before / behind).log10() < 4
