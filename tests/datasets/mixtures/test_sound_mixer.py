"""Banks and mixtures of sound: seeds, levels, speakers, cues, defects."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.mixtures.cue_spoiling import draw_defects, spoil
from cavmae.datasets.mixtures.seed_stream import SeedStream
from cavmae.datasets.mixtures.sound_filters import SoundFilters
from cavmae.datasets.mixtures.sound_mixer import FRAME, SoundMixer
from cavmae.datasets.mixtures.sound_settings import SoundSettings
from cavmae.datasets.mixtures.speaker_pitch import speaker_pitches
from cavmae.datasets.mixtures.speech_bank import CUE_SCALE, RecordingBank, load_or_build_bank
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.synthetic.articulation import at_frames, from_audio
from cavmae.datasets.synthetic.recordings import active_level

PLAIN = SoundSettings().talking(spoiled=False)


def syllables(pitch: float, seconds: float, seed: int) -> np.ndarray:
    """A buzz in syllables of random lengths and loudness."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16_000)) / 16_000
    buzz = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 30))
    loudness = np.interp(
        time,
        np.arange(0, seconds + 0.1, 0.1),
        rng.random(int(seconds * 10) + 2)[: len(np.arange(0, seconds + 0.1, 0.1))],
    )
    wave: np.ndarray = (0.1 * buzz * loudness).astype(np.float32)
    return wave


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speech")
    for number in range(8):
        wave = syllables(90 + 17 * number, 4.0 + 0.3 * number, number)
        soundfile.write(path / f"s{number // 2}-{number}.wav", wave, 16_000)
    return path


@pytest.fixture(scope="module")
def bank(folder: Path) -> RecordingBank:
    return load_or_build_bank([folder], folder / "cache", workers=1)


def test_a_bank_holds_what_was_recorded_and_its_cues(folder: Path, bank: RecordingBank) -> None:
    assert bank.names == ("s0", "s1", "s2", "s3")
    number = 3
    start, length = int(bank.starts[number]), int(bank.lengths[number])
    wave = soundfile.read(folder / "s1-3.wav", dtype="float32")[0]
    samples = bank.samples[start : start + length].float().numpy() / 32767
    np.testing.assert_allclose(samples, wave[:length], atol=1e-4)
    level = active_level(wave)
    assert float(bank.levels[number]) == pytest.approx(level, abs=0.1)
    times = (np.arange(length // 160) + 0.5) / 100
    expected = at_frames(from_audio(wave[:length], level), times)
    cues = bank.cues[start // 160 : (start + length) // 160].float() / CUE_SCALE
    np.testing.assert_allclose(cues.numpy(), expected, atol=0.006)


def test_the_pitch_of_a_speaker_is_the_median_of_recordings(bank: RecordingBank) -> None:
    expected = torch.tensor([90 + 17 * (2 * speaker + 0.5) for speaker in range(4)])
    torch.testing.assert_close(speaker_pitches(bank), expected, rtol=0.02, atol=0)


def test_a_bank_is_read_from_the_cache_and_a_damaged_one_is_named(
    folder: Path, bank: RecordingBank, tmp_path: Path
) -> None:
    cache = next((folder / "cache").iterdir())
    again = load_or_build_bank([folder], folder / "cache")
    assert again.names == bank.names and torch.equal(again.samples, bank.samples)
    broken = tmp_path / cache.name
    broken.write_bytes(cache.read_bytes()[:1000])
    with pytest.raises(CavmaeError, match=f"{cache.name} is damaged"):
        load_or_build_bank([folder], tmp_path)


def test_files_without_a_speaker_are_of_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", syllables(100, 1.0, 0), 16_000)
    assert load_or_build_bank([tmp_path], tmp_path / "cache", 1).names == (tmp_path.name,)


def speech_crops(mixer: SoundMixer, n: int, v: int) -> Any:
    rngs = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    return mixer._draw_speech(n, v, *rngs)


def rendered(wave: Tensor, speed: int, pitch: int) -> Tensor:
    """A wave of 5 s from its 8000th sample, at a speed and a pitch in steps of 2.5 %."""
    samples = (32767 * wave).round().short()
    bank = RecordingBank(
        samples.repeat(3), torch.tensor([0, 80_000, 160_000]), torch.full((3,), 80_000),
        torch.arange(3), torch.full((3,), -9.0), torch.zeros(1500, 4, dtype=torch.int8),
        ("a", "b", "c"),
    )  # fmt: skip
    mixer = SoundMixer(bank, None, PLAIN)
    crops = speech_crops(mixer, 1, 2)._replace(
        starts=torch.full((1, 2), 8000),
        speed_steps=torch.full((1, 2), speed),
        pitch_steps=torch.full((1, 2), pitch),
    )
    return mixer._render(bank, crops, torch.tensor([0]), torch.zeros(1, 2))[0]


def test_a_seed_makes_the_same_mixtures_and_another_seed_others(bank: RecordingBank) -> None:
    mixer = SoundMixer(bank, bank, SoundSettings())
    first, again, other = mixer.mix(7, 6), mixer.mix(7, 6), mixer.mix(8, 6)
    for field, value in first._asdict().items():
        assert torch.equal(value, getattr(again, field)), field
        assert value.isfinite().all(), field
        assert not torch.equal(value, getattr(other, field)), field


def test_a_mixture_is_the_sum_of_its_parts_at_an_rms_of_1(bank: RecordingBank) -> None:
    batch = SoundMixer(bank, bank, SoundSettings(noise_prob=1, off_screen_prob=1)).mix(0, 8)
    torch.testing.assert_close(batch.voices.sum(1) + batch.residual, batch.mixture)
    torch.testing.assert_close(batch.mixture.square().mean(1).sqrt(), torch.ones(8))
    assert (batch.residual.square().mean(1) > 1e-3).all()


def test_voices_are_of_different_speakers(bank: RecordingBank) -> None:
    mixer = SoundMixer(bank, None, dataclasses.replace(PLAIN, voices=3))
    crops = speech_crops(mixer, 200, 4)
    speakers = bank.speakers[crops.recordings].sort(dim=1).values
    assert (speakers.diff(dim=1) > 0).all()
    with pytest.raises(UsageError, match="of 4 speakers, but mixtures need 5"):
        SoundMixer(bank, None, dataclasses.replace(PLAIN, voices=4))


def test_levels_are_those_of_the_settings(bank: RecordingBank) -> None:
    mixer = SoundMixer(bank, None, dataclasses.replace(PLAIN, level_db=0.0))
    batch = mixer.mix(3, 8)
    powers = 10 * batch.voices.square().mean(-1).log10()
    # The active level of whole recordings: crops differ by their pauses.
    assert (powers[:, 0] - powers[:, 1]).abs().mean() < 3


def test_resampling_moves_the_pitch_and_the_cue(bank: RecordingBank) -> None:
    mixer = SoundMixer(bank, None, PLAIN)
    crops = speech_crops(mixer, 1, 2)._replace(starts=torch.tensor([[3200, 3200]]))
    peaks = []
    for steps in (40, 50):
        both = torch.tensor([[steps, steps]])
        row = crops._replace(speed_steps=both, pitch_steps=both)
        wave = mixer._render(bank, row, torch.tensor([0]), torch.zeros(1, 2))[0]
        spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs()
        peaks.append(int(spectrum[: 320 * len(wave) // 16_000].argmax()))
    assert peaks[1] / peaks[0] == pytest.approx(1.25, rel=0.02)
    slow = mixer._sample_cues(crops, torch.zeros(1, 2))[0]
    fast = mixer._sample_cues(
        crops._replace(speed_steps=torch.full((1, 2), 50)), torch.zeros(1, 2)
    )[0]
    # Frame n of the fast one is at 1.25 n of the slow one.
    torch.testing.assert_close(
        fast[10], slow[[12, 13]].lerp(slow[[13, 12]], 0.5)[0], atol=0.15, rtol=0
    )


def test_a_resampled_tone_stays_clean() -> None:
    """A tone through all speeds is a tone of another pitch: -50 dB of anything else."""
    time = torch.arange(5 * 16_000) / 16_000
    wave = rendered(0.5 * (2 * torch.pi * 1000 * time).sin(), 33, 33)
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs().square()
    peak = int(spectrum.argmax())
    assert peak * 16_000 / len(wave) == pytest.approx(825, abs=1)
    near = spectrum[peak - 4 : peak + 5].sum()
    assert (spectrum.sum() - near) / near < 1e-5


@pytest.mark.parametrize(("speed", "pitch"), [(32, 48), (48, 32), (40, 44), (36, 40)])
def test_pitch_and_speed_are_apart(speed: int, pitch: int) -> None:
    """A tone's frequency is changed by the pitch, the times of clicks by the speed."""
    time = torch.arange(5 * 16_000) / 16_000
    wave = rendered(0.5 * (2 * torch.pi * 1000 * time).sin(), speed, pitch)
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs()
    peak = int(spectrum.argmax()) * 16_000 / len(wave)
    assert peak == pytest.approx(1000 * pitch / 40, rel=2e-3)
    clicks = torch.zeros(5 * 16_000)
    clicks[8000::8000] = 0.9  # each half a second, of which the first is the first sample
    wave = rendered(clicks, speed, pitch).square()
    samples = torch.arange(len(wave))
    for expected in torch.arange(8000, len(wave) - 2000, 8000) * 40 / speed:
        near = (samples - expected).abs() < 2000
        center = (wave * samples)[near].sum() / wave[near].sum()
        assert (center - expected).abs() < 320  # 20 ms


def test_a_share_of_voices_has_a_pitch_of_its_own(bank: RecordingBank) -> None:
    settings = dataclasses.replace(PLAIN, speed_prob=0.8, pitch_prob=0.3)
    crops = speech_crops(SoundMixer(bank, None, settings), 400, 3)
    apart = crops.speed_steps != crops.pitch_steps
    assert 0.18 < apart.float().mean() < 0.3  # 1 in 5 draws the pitch of its speed
    for steps in (crops.speed_steps[apart], crops.pitch_steps[apart]):
        assert set(steps.tolist()) == {32, 36, 40, 44, 48}
    mixer = SoundMixer(bank, None, dataclasses.replace(settings, pitch_prob=0.0))
    same = speech_crops(mixer, 400, 3)
    assert torch.equal(same.speed_steps, same.pitch_steps)
    assert ((crops.speed_steps - same.speed_steps).abs() <= 2).all()  # rounded at most


def test_a_pitch_out_of_range_is_named() -> None:
    with pytest.raises(UsageError, match=r"mix.max_pitch 0.8 is not from 1 to 2"):
        SoundSettings(max_pitch=0.8)


def test_onsets_of_cues_are_those_of_voices_with_a_pitch_of_their_own(tmp_path: Path) -> None:
    time = np.arange(4 * 16_000) / 16_000
    for number in range(3):
        wave = syllables(120 + 20 * number, 4.0, number) * (np.sin(2 * np.pi * time) > 0)
        soundfile.write(tmp_path / f"s{number}-0.wav", wave.astype(np.float32), 16_000)
    bank = load_or_build_bank([tmp_path], tmp_path / "cache", workers=1)
    mixer = SoundMixer(bank, None, PLAIN)
    speeds, pitches = torch.full((1, 2), 32), torch.full((1, 2), 48)
    crops = speech_crops(mixer, 1, 2)._replace(speed_steps=speeds, pitch_steps=pitches)
    crops = crops._replace(starts=torch.zeros(1, 2, dtype=torch.int64))
    wave = mixer._render(bank, crops, torch.tensor([0]), torch.zeros(1, 2))[0]
    loudness = wave.unflatten(0, (-1, FRAME)).square().mean(1).sqrt()
    opening = mixer._sample_cues(crops, torch.zeros(1, 2))[0, :, 0]
    # At 0.8 of the speed, sounds of half a second and as long pauses last 0.625 s, 15.6 frames.
    assert loudness[1:14].mean() > 20 * loudness[18:30].mean()
    shifts = {shift: float((opening.roll(shift) * loudness).sum()) for shift in range(-4, 5)}
    assert max(shifts, key=lambda shift: shifts[shift]) == 0


def test_mixtures_of_measuring_lists_are_those_of_before(bank: RecordingBank) -> None:
    """Values of the mixer as it was before pitches and codecs."""
    batch = SoundMixer(bank, None, SoundSettings().talking(spoiled=True)).mix(11, 4)
    expected = torch.tensor(
        [
            [1.31834, -0.57109, -0.77005, -0.49579],
            [0.81377, 0.46293, 0.99706, -0.73308],
            [0.68467, 0.16275, -0.44114, 1.61678],
            [-0.78698, 1.37072, -0.07539, -0.29038],
        ]
    )
    torch.testing.assert_close(batch.mixture[:, 9999::10_000], expected, atol=1e-4, rtol=0)
    expected = torch.tensor(
        [[0.38859, 0.18516], [0.55866, 0.77022], [0.86919, 0.77071], [1.19017, 0.93592]]
    )
    torch.testing.assert_close(batch.cues[:, :, 31, 0], expected, atol=1e-4, rtol=0)


def active(voices: Tensor) -> Tensor:
    return voices.unflatten(-1, (-1, FRAME)).square().mean(-1) > 1e-6


def test_silent_people_are_silent_and_their_mouths_closed_or_moving(bank: RecordingBank) -> None:
    quiet = dataclasses.replace(PLAIN, silent_prob=1.0)
    batch = SoundMixer(bank, bank, dataclasses.replace(quiet, noise_prob=1)).mix(0, 4)
    assert batch.voices.abs().max() == 0 and batch.cues.abs().max() == 0
    moving = SoundMixer(bank, None, dataclasses.replace(quiet, moving_prob=1.0)).mix(0, 4)
    assert moving.mixture.abs().max() == 0
    assert (moving.cues[..., 0].amax(-1) > 0.2).all()


def test_parts_begin_and_end_and_mouths_with_them(bank: RecordingBank) -> None:
    settings = dataclasses.replace(PLAIN, partial_prob=1.0)
    batch = SoundMixer(bank, None, settings).mix(1, 16)
    whole = SoundMixer(bank, None, PLAIN).mix(1, 16)
    share = active(batch.voices).float().mean(-1)
    assert (share < 0.7).any() and (share > 0.9).any()
    inaudible = batch.voices.unflatten(-1, (-1, FRAME)).abs().amax(-1) == 0
    assert batch.cues[inaudible].abs().max() == 0
    assert whole.cues[inaudible].abs().max() > 0.2


def test_filters_change_voices_but_not_the_time_of_their_beginning() -> None:
    settings = dataclasses.replace(PLAIN, room_prob=1.0, equaliser_prob=1.0, equaliser_db=0.0)
    filters = SoundFilters(settings)
    drawn = filters.draw(1, 2, torch.Generator().manual_seed(0))
    click = torch.zeros(2, settings.samples)
    click[:, 1000] = 1
    echoes = filters.apply(click.clone(), drawn, torch.tensor([0, 1]))
    assert (echoes.abs().argmax(1) == 1000).all()
    assert echoes[:, :999].abs().max() < 1e-5
    torch.testing.assert_close(echoes.square().sum(1), torch.ones(2), atol=1e-3, rtol=0)
    assert not torch.allclose(echoes[0], echoes[1], atol=1e-3)


def test_defects_spoil_cues_within_their_limits() -> None:
    settings = SoundSettings(spoiled_prob=1.0, gap_prob=1.0)
    defects = draw_defects(settings, 200, 64, 4, torch.Generator().manual_seed(0))
    assert defects.shift.abs().max() <= 2  # 80 ms
    assert defects.shift.std() > 0.8
    assert (defects.kept.sum(1) >= 64 - 20).all() and (defects.kept.sum(1) < 64).any()
    assert defects.noise.std() < 0.15
    cues = torch.full((200, 64, 4), 0.5)
    changed = spoil(cues, defects) - cues
    assert 0.02 < changed.abs().mean() < 0.3
    clean = draw_defects(PLAIN, 200, 64, 4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(spoil(cues, clean), cues)


def test_gaps_of_cues_are_known(bank: RecordingBank) -> None:
    """Where a mouth is hidden all channels but the opening, which breathes, are 0."""
    settings = dataclasses.replace(PLAIN, spoiled_prob=1.0, gap_prob=1.0, cue_noise=0.0)
    batch = SoundMixer(bank, None, settings).mix(0, 8)
    assert batch.visible.shape == batch.cues.shape[:3]
    hidden = ~batch.visible
    assert hidden.flatten(0, 1).any(1).sum() > 8 and hidden.float().mean() < 0.35
    assert (batch.cues[..., 1:][hidden] == 0).all()
    assert (batch.cues[..., 1:][batch.visible] != 0).any(-1).float().mean() > 0.8
    assert SoundMixer(bank, None, PLAIN).mix(0, 8).visible.all()


def test_seeds_resume_and_differ_between_processes() -> None:
    def loader(rank: int = 0) -> Loader:
        return Loader(SeedStream(4, seed=1, rank=rank, world_size=2))

    whole = loader()
    batches = iter(whole)
    first = [next(batches)["seed"] for _ in range(3)]
    state = whole.state_dict()
    rest = [next(batches)["seed"] for _ in range(3)]
    resumed = loader()
    resumed.load_state_dict(state)
    batches = iter(resumed)
    assert [next(batches)["seed"] for _ in range(3)] == rest
    other = iter(loader(1))
    assert len({*first, *rest, *(next(other)["seed"] for _ in range(6))}) == 12


def test_other_processes_and_batches_use_seeds_of_their_own() -> None:
    seen: list[int] = []
    states: list[dict[str, Any]] = []
    for ranks, size, parts in ((2, 4, 1), (3, 2, 4), (1, 5, 1)):
        loaders = [
            Loader(SeedStream(size, seed=1, rank=rank, world_size=ranks, parts=parts))
            for rank in range(ranks)
        ]
        for loader in loaders:
            if states:
                loader.load_states(states)
            batches = iter(loader)
            seen += {next(batches)["seed"] for _ in range(5)}
        states = [loader.state_dict() for loader in loaders]
    assert len(set(seen)) == len(seen) == 2 * 5 + 3 * 2 + 5


def test_lists_have_the_same_seeds_whatever_the_processes() -> None:
    def seeds(count: int) -> list[tuple[str, int]]:
        streams = [SeedStream(8, 5, ("a", "b"), 3, rank, count) for rank in range(count)]
        return sorted((b["list"], b["seed"]) for stream in streams for b in Loader(stream))

    assert len(seeds(1)) == 6
    assert seeds(1) == seeds(2)
    assert {seed for name, seed in seeds(1) if name == "a"} == {
        seed for name, seed in seeds(1) if name == "b"
    }


def test_hard_mixtures_come_later(bank: RecordingBank) -> None:
    """At first all people talk all the time, without noise; after the ramp as often as set."""
    settings = SoundSettings(
        silent_prob=0.5, off_screen_prob=1.0, noise_prob=1.0, room_prob=1.0, ramp=0.5
    )
    mixer = SoundMixer(bank, bank, settings)
    first = mixer.at(0.0).mix(0, 16)
    assert not first.residual.any()
    assert (first.voices.square().mean(-1) > 1e-4).all()
    for progress in (0.5, 1.0):
        later, always = mixer.at(progress).mix(0, 16), mixer.mix(0, 16)
        assert torch.equal(later.mixture, always.mixture)
    assert settings.at(0.25).silent_prob == 0.25
    assert settings.at(0.25).spoiled_prob == settings.spoiled_prob
    assert dataclasses.replace(settings, ramp=0.0).at(0.0).silent_prob == 0.5
