"""Equalisers and rooms: linear filters of voices, applied together in the frequency domain.

Shapes: N mixtures, V voices, M rendered recordings, S samples.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae.datasets.mixtures.rooms import draw_rooms, room_responses
from cavmae.datasets.mixtures.sound_settings import SoundSettings

ROOMS, PLACES = 128, 4
ROOM_SAMPLES = 8192  # 0.5 s: the longest reverberation has decayed by 51 dB
BANDS = 8  # of an equaliser, equally spaced in the square root of frequency
ROOM_SEED = 1


def on_device(value: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU on a device, through page-locked memory for a GPU.

    A copy from ordinary memory would wait for all that the GPU has still to do.
    """
    if device.type == "cuda":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


class FilterDraw(NamedTuple):
    """Filters of voices, on the CPU.

    Attributes:
        gains: [N, V, BANDS], of the equaliser in dB.
        rooms: int64 [N, V], impulse response in the bank; 0: none.
        used: bool [N, V], whether there is any.
    """

    gains: Tensor
    rooms: Tensor
    used: Tensor


class SoundFilters:
    """Filters of a distribution of mixtures.

    Args:
        settings: the distribution.
    """

    def __init__(self, settings: SoundSettings):
        self.settings = settings
        length = settings.samples + ROOM_SAMPLES
        self._length = -(-length // 1000) * 1000  # a product of small primes
        bins = self._length // 2 + 1
        place = (torch.arange(bins) / (bins - 1)).sqrt() * (BANDS - 1)
        distance = (place - torch.arange(BANDS)[:, None]).abs()
        self._bands = (1 - distance).clamp(min=0)  # [BANDS, bins]
        self._responses = _room_responses()  # [1 + ROOMS PLACES, ROOM_SAMPLES]

    def to(self, device: torch.device) -> None:
        """Moves the filters to a device."""
        self._bands, self._responses = self._bands.to(device), self._responses.to(device)

    def draw(self, n: int, v: int, rng: torch.Generator) -> FilterDraw:
        """Filters of voices; all voices of a mixture are in one room, at different places."""
        settings = self.settings
        equalised = torch.rand(n, v, generator=rng) < settings.equaliser_prob
        gains = (2 * torch.rand(n, v, BANDS, generator=rng) - 1) * settings.equaliser_db
        reverberant = torch.rand(n, 1, generator=rng) < settings.room_prob
        room = torch.randint(ROOMS, (n, 1), generator=rng)
        place = (torch.randint(PLACES, (n, 1), generator=rng) + torch.arange(v)) % PLACES
        rooms = (1 + room * PLACES + place) * reverberant
        return FilterDraw(gains * equalised[..., None], rooms, equalised | reverberant)

    def apply(self, waves: Tensor, filters: FilterDraw, rows: Tensor) -> Tensor:
        """Filtered waves [M, S].

        Args:
            waves: [M, S].
            rows: int64 [M] on the CPU, voice of each wave among the flattened ones of ``filters``.
        """
        chosen = filters.used.flatten()[rows].nonzero()[:, 0]
        if not len(chosen):
            return waves
        device = waves.device
        gains = on_device(filters.gains.flatten(0, 1)[rows[chosen]], device)
        rooms = on_device(filters.rooms.flatten()[rows[chosen]], device)
        chosen = on_device(chosen, device)
        response = torch.fft.rfft(self._responses[rooms], self._length)
        response = response * 10 ** (gains @ self._bands / 20)
        spectra = torch.fft.rfft(waves[chosen], self._length) * response
        waves[chosen] = torch.fft.irfft(spectra, self._length)[:, : waves.shape[1]]
        return waves


@functools.cache
def _room_responses() -> Tensor:
    """Impulse responses with an energy of 1; the first is a single 1, that of no room."""
    rng = torch.Generator().manual_seed(ROOM_SEED)
    responses = room_responses(draw_rooms(ROOMS, PLACES, rng), ROOM_SAMPLES, rng)
    responses = responses / responses.square().sum(-1, keepdim=True).sqrt()
    single = torch.zeros(1, ROOM_SAMPLES)
    single[0, 0] = 1
    return torch.cat([single, responses.flatten(0, 1)])
