import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format.weighted_sets import WeightedSet
from cavmae.datasets.stream import features
from cavmae.datasets.stream.transforms import (
    Augmentation,
    DeviceTransform,
    Statistics,
    add_noise,
    apply_windows,
    mix_labels,
    mix_waveforms,
    mixing_weights,
    normalise_frames,
    random_windows,
    roll_in_time,
    smooth_labels,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def batch(size: int = 4) -> dict:  # type: ignore[type-arg]
    lengths = torch.tensor([16000, 16000, 12000, 8000])[:size]
    waveform = torch.zeros(size, 16000, dtype=torch.int16)
    fbank = torch.zeros(size, 100, 128, dtype=torch.float16)
    for row, length in enumerate(lengths.tolist()):
        samples = (torch.randn(length) * 3000).to(torch.int16)
        waveform[row, :length] = samples
        real = features.fbank(samples.float() / 32768)
        fbank[row, : len(real)] = real.half()
    return {
        "key": [f"k{i}" for i in range(size)],
        "fbank": fbank,
        "fbank_length": torch.tensor([features.fbank_frames(n) for n in lengths.tolist()]),
        "waveform": waveform,
        "waveform_length": lengths,
        "frames": torch.randint(0, 256, (size, 2, 8, 10, 3), dtype=torch.uint8),
        "labels": torch.eye(size),
    }


def test_normalising_is_the_references() -> None:
    data = batch()
    result = DeviceTransform(Statistics(-5.081, 4.4849))(data)
    torch.testing.assert_close(result["fbank"], (data["fbank"].float() + 5.081) / 4.4849)
    padding, silence = (0 + 5.081) / 4.4849, (features.SILENCE + 5.081) / 4.4849
    assert padding == pytest.approx(1.133, abs=1e-3)  # as the specification has it
    assert silence == pytest.approx(-2.422, abs=1e-3)
    assert result["fbank"][3, -1, 0] == pytest.approx(padding)
    frames = data["frames"].numpy() / 255
    expected = (frames - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(
        result["frames"].numpy(), np.moveaxis(expected, -1, 2), rtol=1e-4, atol=1e-5
    )
    assert result["waveform"].abs().max() <= 1
    assert result["key"] == data["key"]


def test_a_grey_frame_of_mean_colour_is_zero() -> None:
    frame = torch.full((1, 1, 4, 4, 3), 118, dtype=torch.uint8)
    assert normalise_frames(frame).abs().max() < 0.3


def test_nothing_is_random_outside_training() -> None:
    everything = Augmentation(48, 192, True, 1024, 0.5, 10.0, 0.1)
    transform = DeviceTransform(Statistics(), everything).eval()
    data = batch()
    first, second = transform(data), transform(data)
    plain = DeviceTransform(Statistics())(data)
    for field in ("fbank", "frames", "labels", "waveform"):
        torch.testing.assert_close(first[field], second[field])
        torch.testing.assert_close(first[field], plain[field])


def test_specaugment_masks_a_band_and_a_span_of_each_clip() -> None:
    statistics = Statistics(0.0, 1.0)
    transform = DeviceTransform(statistics, Augmentation(freq_mask=48, time_mask=40)).train()
    data = {"fbank": torch.full((64, 100, 128), 5.0), "fbank_length": torch.full((64,), 100)}
    hidden = transform(data)["fbank"] == 0  # before normalising, as in the reference
    rows, columns = hidden.all(2).sum(1), hidden.all(1).sum(1)
    assert 0 < rows.max() < 41
    assert 0 < columns.max() < 49
    assert len(rows.unique()) > 10  # every clip has masks of its own
    assert len(columns.unique()) > 10
    for mask in hidden:
        expected = mask.all(1)[:, None] | mask.all(0)[None, :]
        assert torch.equal(mask, expected)
        for line in (mask.all(1), mask.all(0)):
            assert (torch.diff(line.int()) == 1).sum() <= 1  # contiguous


def test_specaugment_leaves_half_of_a_short_clip() -> None:
    transform = DeviceTransform(Statistics(0.0, 1.0), Augmentation(time_mask=192)).train()
    data = {"fbank": torch.full((64, 100, 128), 5.0), "fbank_length": torch.full((64,), 100)}
    rows = (transform(data)["fbank"] == 0).all(2).sum(1)
    assert 30 < rows.max() <= 50


def test_noise_is_as_strong_as_the_references() -> None:
    added = add_noise(torch.zeros(2000, 10, 8))
    strength = added.amax((1, 2))
    assert added.min() >= 0
    assert strength.max() <= 0.1
    assert strength.mean() == pytest.approx(0.05, abs=0.005)


def test_roll_moves_frames_and_loses_none() -> None:
    fbank = torch.arange(50.0)[None, :, None].expand(200, 50, 3)
    rolled = roll_in_time(fbank, 20)
    shifts = set()
    for clip in rolled:
        shift = int(clip.argmin(0)[0])
        shifts.add((shift + 25) % 50 - 25)
        assert torch.equal(clip, torch.roll(fbank[0], shift, 0))
    assert min(shifts) == -20
    assert max(shifts) == 19


def test_label_smoothing() -> None:
    smoothed = smooth_labels(torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]]), 0.1)
    expected = torch.tensor([[0.9, 0.025, 0.025, 0.025], [0.9, 0.9, 0.025, 0.025]])
    torch.testing.assert_close(smoothed, expected)


def test_mixed_labels_are_those_of_a_loop() -> None:
    labels = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    partner, weight, e = [1, 0, 3, 2], [0.3, 1.0, 0.75, 1.0], 0.1
    mixed = mix_labels(labels, torch.tensor(partner), torch.tensor(weight), e)
    for row in range(4):
        own, other, w = labels[row], labels[partner[row]], weight[row]
        for k in range(4):
            if w == 1:
                expected = 1 - e if own[k] else e / 4
            else:
                expected = e / 4
                if own[k]:
                    expected += w * (1 - e)
                if other[k]:
                    expected += (1 - w) * (1 - e)
            assert mixed[row, k] == pytest.approx(expected)


def test_mixup_smooths_labels_and_mixes_frames_without_audio() -> None:
    data = {name: value for name, value in batch().items() if name in ("key", "frames", "labels")}
    augmentation = Augmentation(mixup=1.0, label_smoothing=0.2)
    result = DeviceTransform(Statistics(), augmentation).train()(data)
    # All are mixed, in pairs or alone: 0.2 in all, and 0.8 of one or two classes.
    torch.testing.assert_close(result["labels"].sum(1), torch.ones(4))
    assert result["labels"].min() == pytest.approx(0.05)
    still = DeviceTransform(Statistics())(data)["frames"]
    for row in range(4):
        share = (result["labels"][row] - 0.05) / 0.8
        torch.testing.assert_close(result["frames"][row], torch.einsum("c,c...->...", share, still))


def naive_mix(waveforms: list[np.ndarray], partner: list[int], weight: list[float]) -> list:  # type: ignore[type-arg]
    mixed = []
    for i, waveform in enumerate(waveforms):
        first = waveform - waveform.mean()
        other = waveforms[partner[i]] - waveforms[partner[i]].mean()
        second = np.zeros_like(first)
        count = min(len(first), len(other))
        second[:count] = other[:count]
        both = weight[i] * first + (1 - weight[i]) * second
        mixed.append(both - both.mean())
    return mixed


def test_mixing_waveforms_equals_a_loop() -> None:
    lengths = [1000, 700, 400]
    waveforms = torch.zeros(3, 1000)
    for row, length in enumerate(lengths):
        waveforms[row, :length] = torch.randn(length) + row
    partner, weight = [2, 0, 1], [0.3, 1.0, 0.6]
    mixed = mix_waveforms(
        waveforms, torch.tensor(lengths), torch.tensor(partner), torch.tensor(weight)
    )
    rows = [w[:n].numpy() for w, n in zip(waveforms, lengths, strict=True)]
    for row, expected in enumerate(naive_mix(rows, partner, weight)):
        np.testing.assert_allclose(mixed[row, : lengths[row]], expected, atol=1e-5)
        assert (mixed[row, lengths[row] :] == 0).all()


def test_mixup_has_the_same_weight_for_audio_frames_and_labels() -> None:
    transform = DeviceTransform(Statistics(0.0, 1.0), Augmentation(mixup=1.0)).train()
    plain = DeviceTransform(Statistics(0.0, 1.0))
    data = batch()
    result, still = transform(data), plain(data)
    assert (result["labels"].sum(1) - 1).abs().max() < 1e-5
    for row in range(4):
        own = float(result["labels"][row, row])
        if own == 1:
            continue  # its own partner
        other = int((result["labels"][row] * (1 - torch.eye(4)[row])).argmax())
        frames = own * still["frames"][row] + (1 - own) * still["frames"][other]
        torch.testing.assert_close(result["frames"][row], frames)
        waveforms = still["waveform"]
        mixed = mix_waveforms(
            waveforms, data["waveform_length"], torch.tensor([other] * 4), torch.full((4,), own)
        )
        torch.testing.assert_close(result["waveform"][row], mixed[row])
        length = int(data["waveform_length"][row])
        expected = features.fbank(mixed[row, :length])
        torch.testing.assert_close(
            result["fbank"][row, : len(expected)], expected, atol=1e-3, rtol=0
        )
        assert (result["fbank"][row, len(expected) :] == 0).all()
    assert (result["labels"].max(1).values < 1).any()


def test_without_partner_mixup_changes_nothing() -> None:
    transform = DeviceTransform(Statistics(0.0, 1.0), Augmentation(mixup=1e-9)).train()
    data = batch()
    result, still = transform(data), DeviceTransform(Statistics(0.0, 1.0))(data)
    for row, length in enumerate(data["fbank_length"].tolist()):
        # The stored fbank is float16; computed anew it is not.
        torch.testing.assert_close(
            result["fbank"][row, :length], still["fbank"][row, :length], atol=0.01, rtol=0
        )
    torch.testing.assert_close(result["frames"], still["frames"])


def test_mixing_weights() -> None:
    weights = mixing_weights(4000, 0.5, 10.0)
    assert (weights == 1).float().mean() == pytest.approx(0.5, abs=0.03)
    mixed = weights[weights < 1]
    assert mixed.mean() == pytest.approx(0.5, abs=0.02)
    assert mixed.std() == pytest.approx((1 / (4 * 21)) ** 0.5, abs=0.01)  # of Beta(10, 10)


def test_mixup_needs_waveforms() -> None:
    data = batch()
    del data["waveform"]
    with pytest.raises(UsageError, match="waveform"):
        DeviceTransform(Statistics(), Augmentation(mixup=0.5)).train()(data)


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop=0.0),
        Augmentation(crop=1.1),
        Augmentation(freq_mask=-1),
        Augmentation(freq_mask=129),
        Augmentation(mixup=1.5),
        Augmentation(label_smoothing=1.0),
        Augmentation(roll=-1),
    ],
)
def test_augmentations_out_of_range(augmentation: Augmentation) -> None:
    with pytest.raises(UsageError):
        DeviceTransform(Statistics(), augmentation)


def test_a_window_equals_cropping_and_scaling() -> None:
    frames = torch.rand(2, 3, 3, 24, 32)
    window = torch.tensor([[[0.5, 0, 0.25], [0, 0.5, -0.5]], [[-1, 0, 0], [0, 1, 0]]])
    windowed = apply_windows(frames, window, "bilinear")
    # Half the size; its center lies at 5/8 of the width and a quarter of the height.
    crop = frames[0, :, :, 0:12, 12:28]
    expected = torch.nn.functional.interpolate(crop, (24, 32), mode="bilinear")
    # At the crop's edge the window interpolates with pixels beyond it.
    torch.testing.assert_close(windowed[0][..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    torch.testing.assert_close(windowed[1], frames[1].flip(-1))


def test_windows_lie_inside_and_mirror_half() -> None:
    windows = random_windows(4000, 0.4, True, torch.device("cpu"))
    scale, center = windows[:, 1, 1], windows[:, :, 2]
    assert scale.min() > 0.4 - 1e-6
    assert scale.max() <= 1
    assert scale.mean().item() == pytest.approx(0.7, abs=0.01)
    assert (scale[:, None] + center.abs()).max() <= 1 + 1e-6
    assert (center.abs() > 0.3).any(0).all()
    assert windows[:, 0, 0].abs().equal(scale)
    assert (windows[:, 0, 0] < 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (random_windows(50, 1.0, False, torch.device("cpu")) == torch.eye(2, 3)).all()


def test_frames_and_masks_of_a_clip_share_their_window() -> None:
    data = batch()
    masks = torch.randint(0, 3, (4, 1, 8, 10)).repeat(1, 2, 1, 1).byte()
    data |= {"masks": masks, "frames": masks[..., None].repeat(1, 1, 1, 1, 3) * 100}
    transform = DeviceTransform(Statistics(), Augmentation(crop=0.999, flip=True))
    result = transform(data)
    assert result["masks"].dtype == torch.uint8
    mirrored = [not result["masks"][i].equal(masks[i]) for i in range(4)]
    assert any(mirrored) and not all(mirrored)
    for clip, flipped in enumerate(mirrored):
        assert result["masks"][clip].equal(masks[clip].flip(-1) if flipped else masks[clip])
        torch.testing.assert_close(result["frames"][clip, 0], result["frames"][clip, 1])
    order = result["frames"][:, :, 0].flatten().argsort()
    assert result["masks"].flatten()[order].diff().min() == 0  # brighter where the label is higher


def test_statistics_come_from_the_check(tmp_path: Path) -> None:
    with pytest.raises(CavmaeError, match="cavmae check"):
        Statistics.load(str(tmp_path))
    with pytest.raises(
        CavmaeError, match=r"--out DIR, and copy DIR/stats.json to file:///\S+/stats"
    ):
        Statistics.load(f"file://{tmp_path}")
    for content in ("{", "{}", '{"fbank_mean": -5, "fbank_std": 0}'):
        (tmp_path / "stats.json").write_text(content)
        with pytest.raises(CavmaeError):
            Statistics.load(str(tmp_path))
    (tmp_path / "stats.json").write_text(json.dumps({"fbank_mean": -5.5, "fbank_std": 4.25}))
    assert Statistics.load(str(tmp_path)) == Statistics(-5.5, 4.25)


def test_statistics_of_a_mixture_are_those_of_its_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn, sets = [], []
    for name, mean, std, count in (("a", -3.0, 4.0, 3), ("b", -7.0, 2.0, 1)):
        values = rng.normal(mean, std, 5000)
        record = {"fbank_mean": float(values.mean()), "fbank_std": float(values.std())}
        (tmp_path / name).mkdir()
        (tmp_path / name / "stats.json").write_text(json.dumps(record))
        sets.append(WeightedSet(str(tmp_path / name), 2.0 * count))
        drawn += [values] * count  # clips of one length, three of the one for each of the other
    mixed = Statistics.of_mixture(sets)
    assert mixed.mean == pytest.approx(np.concatenate(drawn).mean())
    assert mixed.std == pytest.approx(np.concatenate(drawn).std())
    assert Statistics.of_mixture(sets[:1]) == Statistics.load(sets[0].path)
    with pytest.raises(CavmaeError, match="cavmae check"):
        Statistics.of_mixture([*sets, WeightedSet(str(tmp_path))])
