"""Shoebox rooms: impulse responses by the image method, with a decaying noise as their late tail.

Images: J. B. Allen and D. A. Berkley, "Image method for efficiently simulating small-room
acoustics", JASA 65 (1979). All walls reflect alike, at all frequencies; their coefficient follows
from the reverberation time by Eyring's formula. An image of distance d adds its gain over d to the
nearest sample.

Tail: images are summed up to the mixing time of a shoebox, 12 ms + 20 ms/m V / S (A. Lindau et al.,
JAES 60, 2012). Behind it lies noise that decays by the reverberation time, with the power of the
images that it replaces: 4 pi c / V in a second, since 4 pi (c t)^2 c / V images arrive, each with a
power of 1 / (c t)^2. Images of half a second would be a million for each response.

Shapes: R rooms, P places of talkers in each, L samples, I images along an axis.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae.datasets.stream.features import SAMPLE_RATE

SOUND_SPEED = 343.0  # m/s
MIN_SIZE, MAX_SIZE = (2.5, 2.5, 2.4), (8.0, 6.0, 3.5)  # m: length, width, height
REVERBERATION = 0.15, 0.6  # s, to -60 dB
WALL = 0.3  # m between a wall and a talker or microphone
DISTANCE = 0.3, 2.0  # m between a talker and the microphone
CANDIDATES = 8  # directions, of which the first with space for the smallest distance is taken
ORDER = 5  # reflections along an axis: enough up to the mixing time of the lowest room


class Rooms(NamedTuple):
    """Shoebox rooms with one microphone each; lengths in m.

    Attributes:
        sizes: float64 [R, 3].
        reverberation_times: float64 [R], in s, to -60 dB.
        microphones: float64 [R, 3].
        talkers: float64 [R, P, 3].
    """

    sizes: Tensor
    reverberation_times: Tensor
    microphones: Tensor
    talkers: Tensor

    @property
    def volumes(self) -> Tensor:
        """[R], in m^3."""
        return self.sizes.prod(1)

    @property
    def volume_to_surface(self) -> Tensor:
        """[R], in m."""
        return 0.5 / (1 / self.sizes).sum(1)

    @property
    def reflection(self) -> Tensor:
        """[R], coefficient of the pressure at a wall, by Eyring's formula."""
        decay = 24 * math.log(10) / SOUND_SPEED * self.volume_to_surface / self.reverberation_times
        return (-decay / 2).exp()

    @property
    def mixing_times(self) -> Tensor:
        """[R], in s after the direct sound: where noise replaces the images."""
        return 0.012 + 0.020 * self.volume_to_surface

    @property
    def distances(self) -> Tensor:
        """[R, P], in m, from the talkers to the microphone."""
        return (self.talkers - self.microphones[:, None]).norm(dim=-1)


def draw_rooms(rooms: int, places: int, rng: torch.Generator) -> Rooms:
    """Rooms of drawn sizes and reverberation times, with talkers near the microphone."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, dtype=torch.float64)

    low, high = (torch.tensor(size, dtype=torch.float64) for size in (MIN_SIZE, MAX_SIZE))
    sizes = low + (high - low) * uniform(rooms, 3)
    decay = REVERBERATION[0] + (REVERBERATION[1] - REVERBERATION[0]) * uniform(rooms)
    space = sizes - 2 * WALL
    microphones = WALL + space * uniform(rooms, 3)
    # A talker stands on the way to a random point of the room, so always inside of it.
    ways = WALL + space[:, None, None] * uniform(rooms, places, CANDIDATES, 3)
    ways = ways - microphones[:, None, None]
    lengths = ways.norm(dim=-1)
    first = (lengths > DISTANCE[0]).int().argmax(-1, keepdim=True)
    way = ways.gather(2, first[..., None].expand(-1, -1, -1, 3))[:, :, 0]
    length = lengths.gather(2, first)
    drawn = DISTANCE[0] + (DISTANCE[1] - DISTANCE[0]) * uniform(rooms, places, 1)
    talkers = microphones[:, None] + way * (drawn / length).clamp(max=1)
    return Rooms(sizes, decay, microphones, talkers)


def room_responses(rooms: Rooms, samples: int, rng: torch.Generator) -> Tensor:
    """Impulse responses float32 [R, P, L]; the direct sound is a 1 at sample 0.

    Args:
        rooms: with their talkers.
        samples: L.
        rng: of the noise of the tails.
    """
    responses = image_responses(rooms, samples, ORDER)
    time = torch.arange(samples) / SAMPLE_RATE
    late = time >= rooms.mixing_times[:, None, None]  # [R, 1, L]
    # Power of a sample at the time of the direct sound, relative to the latter.
    power = 4 * math.pi * SOUND_SPEED / SAMPLE_RATE / rooms.volumes[:, None] * rooms.distances**2
    rate = 3 * math.log(10) / rooms.reverberation_times[:, None, None]  # of the amplitude, 1/s
    start = -rate * rooms.distances[..., None] / SOUND_SPEED + power.log()[..., None] / 2
    decay = (start.float() - rate.float() * time).exp()
    noise = torch.randn(responses.shape, generator=rng)
    return torch.where(late, noise * decay, responses)


def image_responses(rooms: Rooms, samples: int, order: int) -> Tensor:
    """Sums of images, float32 [R, P, L], without a tail; the direct sound is a 1 at sample 0.

    Args:
        rooms: with their talkers.
        samples: L.
        order: largest number of reflections along each axis.
    """
    count = torch.arange(-order, order + 1)
    sizes, talkers = rooms.sizes[:, None, :, None], rooms.talkers[..., None]
    mirrored = torch.where(count % 2 == 0, talkers, sizes - talkers)
    offsets = count * sizes + mirrored - rooms.microphones[:, None, :, None]  # [R, P, 3, I]
    x, y, z = offsets.square().unbind(2)
    distances = (x[..., None, None] + y[..., None, :, None] + z[..., None, None, :]).sqrt()
    direct = rooms.distances[..., None, None, None]
    delays = ((distances - direct) * (SAMPLE_RATE / SOUND_SPEED)).round().long()
    axis = rooms.reflection[:, None] ** count.abs()  # [R, I]
    gains = axis[:, :, None, None] * axis[:, None, :, None] * axis[:, None, None, :]
    gains = gains[:, None] * direct / distances  # [R, P, I, I, I]
    inside = delays < samples
    responses = torch.zeros(*rooms.distances.shape, samples, dtype=torch.float64)
    rows = torch.arange(responses.shape[0] * responses.shape[1]).view(*direct.shape[:2], 1, 1, 1)
    index = (delays + rows * samples)[inside]
    responses.view(-1).index_add_(0, index, gains[inside])
    return responses.float()
