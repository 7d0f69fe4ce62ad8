"""Runs of `cavmae finetune separator` on made voices: outputs, resuming, refused settings."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch
import yaml

from cavmae.common.errors import UsageError
from cavmae.common.registry import to_json_value
from cavmae.datasets.mixtures.seed_stream import SeedStream
from cavmae.datasets.mixtures.sound_mixer import SoundBatch, SoundMixer
from cavmae.datasets.mixtures.sound_settings import SoundSettings
from cavmae.datasets.mixtures.speech_bank import load_or_build_bank
from cavmae.datasets.stream.loader import Loader
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.separation.model import SoundSeparator
from cavmae.finetune.separation.settings import SoundLossSettings
from cavmae.finetune.separation.task import SeparationTask
from cavmae.finetune.separators.settings import (
    SEPARATORS,
    BandSplitOptions,
    F2BOptions,
    FrozenTransformerOptions,
    UNetOptions,
)
from cavmae.finetune.train import main
from cavmae.pretrain.factory import compile_blocks
from cavmae.tools.evaluate_separator import main as evaluate_separator
from tests.datasets.mixtures.test_sound_mixer import syllables
from tests.pretrain.engine.running import trace

SEPARATOR = BandSplitOptions(width=8, heads=2, shared_blocks=1, blocks=1)
SETTINGS: dict[str, Any] = {
    "data": {"batch_size": 2, "held_out_mixtures": 8},
    "mix": {"seconds": 0.64},
    "model": {"separator": to_json_value(SEPARATOR), "width": 8, "cue_layers": 1},
    "loop": {"steps": 4, "log_every": 1, "save_every": 2, "threads": 1, "tracker": "none"},
}  # fmt: skip


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    for number in range(8):
        part = folder / ("train" if number < 5 else "un-seen")
        part.mkdir(exist_ok=True)
        wave = syllables(90 + 17 * number, 1.5, number)
        soundfile.write(part / f"s{number}-0.wav", wave, 16_000)
    return folder


def words(run: Path, speech: Path, **changes: Any) -> list[str]:
    settings = {part: {**values, **changes.get(part, {})} for part, values in SETTINGS.items()}
    data = {"train": [str(speech / "train")], "held_out": [str(speech / "un-seen")]}
    settings["data"] = {**data, "cache": str(speech / "cache"), **settings["data"]}
    path = run.parent / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return ["separator", "--config", str(path), "--out", str(run)]


def test_a_run_and_what_it_leaves(speech: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(words(run, speech)) == 0
    lines = trace(run)
    measured = [line for line in lines if "un_seen_clean_si_sdri" in line]
    assert len(measured) == 1 and "un_seen_spoiled_si_sdri_median" in measured[0]
    # All three are high voices.
    assert "un_seen_clean_si_sdri_similar_pitch" in measured[0]
    assert "un_seen_clean_si_sdri_different_pitch" not in measured[0]
    assert 0 <= measured[0]["un_seen_spoiled_confusion"] <= 1
    assert sum("sdr" in line for line in lines) == 4
    checkpoint = run / "checkpoints" / "000000004"
    assert json.loads((checkpoint / "config.json").read_text())["model_type"] == "sound-separator"
    model = SoundSeparator.from_pretrained(checkpoint)
    mixture = torch.randn(1, 10240)
    voices = model(mixture, torch.zeros(1, 3, 16, 4))
    assert voices.spectra.shape == (1, 4, 257, 65)
    assert voices.activity_logits.shape == (1, 4, 16)
    evaluate = [str(checkpoint), "--speech", f"[{speech / 'un-seen'}]", "--mixtures", "8"]
    out = tmp_path / "metrics.json"
    evaluate_separator([*evaluate, "--cache", str(speech / "cache"), "--out", str(out)])
    metrics = json.loads(out.read_text())
    assert metrics["un_seen_clean_oracle_si_sdri"] > 3
    further = words(tmp_path / "further", speech, model={"init_from": str(checkpoint)})
    assert main([*further, "--loop.steps", "1"]) == 0


@pytest.mark.parametrize(
    ("conditioning", "made_together"), [("cue", 1), ("cue", 4), ("binding", 1)]
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    speech: Path,
    tmp_path: Path,
    conditioning: str,
    made_together: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = {
        "model": {"conditioning": conditioning},
        "data": {**SETTINGS["data"], "made_together": made_together},
        "mix": {**SETTINGS["mix"], "ramp": 1.0, "silent_prob": 1.0},
    }
    main(words(whole, speech, **changes))
    command = words(parts, speech, **changes)
    main(command)
    for folder in (parts / "checkpoints").glob("00000000[34]"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    main([*command, "--resume", "auto"])
    for name in ("model.safetensors", "trainer.safetensors"):
        ends = [run / "checkpoints" / "000000004" / name for run in (whole, parts)]
        assert ends[0].read_bytes() == ends[1].read_bytes()
    if conditioning == "binding":
        assert any("un_seen_spoiled_binding_acc" in line for line in trace(whole))
        out = tmp_path / "metrics.json"
        options = ["--mixtures", "8", "--cache", str(speech / "cache"), "--out", str(out)]
        checkpoint = str(whole / "checkpoints" / "000000004")
        evaluate_separator([checkpoint, "--speech", f"[{speech / 'un-seen'}]", *options])
        accuracy = json.loads(out.read_text())["un_seen_spoiled_binding_acc"]
        table = capsys.readouterr().out.splitlines()
        row = next(line for line in table if line.startswith("| un_seen_spoiled |"))
        assert row.endswith(f" {accuracy:.3f} |")
        assert any(line.startswith("| un_seen_spoiled_oracle_binding |") for line in table)


def test_blocks_unfreeze_at_their_step_in_a_resumed_run_too(speech: Path, tmp_path: Path) -> None:
    separator = FrozenTransformerOptions(width=8, layers=3, channels=1, unfreeze_layers=1,
                                         unfreeze_from=0.5)  # fmt: skip
    model = {"separator": to_json_value(separator)}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for run in (whole, parts):
        main(words(run, speech, model=model, data={"held_out": []}))
    last = parts / "checkpoints" / "000000004"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    main([*words(parts, speech, model=model, data={"held_out": []}), "--resume", "auto"])
    ends = [run / "checkpoints" / "000000004" / "model.safetensors" for run in (whole, parts)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    torch.manual_seed(0)
    first = SoundSeparator(SoundSeparatorConfig(separator, width=8, cue_layers=1)).separator
    half, end = (
        SoundSeparator.from_pretrained(whole / "checkpoints" / name).separator
        for name in ("000000002", "000000004")
    )
    for number, learns in enumerate((True, False, True)):
        weights = [model.blocks[number].mlp.fc1.weight for model in (first, half, end)]
        assert torch.equal(weights[0], weights[1])
        assert torch.equal(weights[1], weights[2]) != learns
    assert not torch.equal(first.out.weight, half.out.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"train": []}}, "--data.train"),
        ({"data": {"held_out": []}, "mix": {"seconds": 0.7}}, "multiple of 0.16"),
        ({"mix": {"noise_prob": 1.5}}, "mix.noise_prob 1.5 is not from 0 to 1"),
        ({"data": {"held_out_mixtures": 4}}, "data.held_out_mixtures 4: at least 8"),
        (
            {"model": {"conditioning": "binding", "queries": 2}, "mix": {"voices": 3}},
            "mix.voices 3 is above model.queries 2: raise the latter",
        ),
    ],
)
def test_settings_that_do_not_work_are_refused(
    speech: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        main(words(tmp_path / "run", speech, **changes))


def test_speakers_that_are_trained_on_are_not_measured(speech: Path, tmp_path: Path) -> None:
    same = {"held_out": [str(speech / "train")]}
    with pytest.raises(UsageError, match=r"5 speakers of data.held_out .* are trained on, too"):
        main(words(tmp_path / "run", speech, data=same))


def test_every_weight_gets_a_gradient_and_activities_gate_the_voices() -> None:
    torch.manual_seed(0)
    model = SoundSeparator(SoundSeparatorConfig(width=8, cue_layers=2))
    mixture, cues = torch.randn(1, 10240), torch.rand(1, 2, 16, 4)
    output = model(mixture, cues)
    (output.spectra.abs().square().mean() + output.activity_logits.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    with torch.no_grad():
        model.activity_head.bias.fill_(-100.0)
        model.activity_head.weight.zero_()
        spectra = model(mixture, cues).spectra
    assert spectra[:, :2].abs().max() < 1e-6 < spectra[:, 2].abs().max()


def test_gaps_of_cues_are_hidden_from_the_separator() -> None:
    torch.manual_seed(0)
    config = SoundSeparatorConfig(UNetOptions(4, F2BOptions()), width=8, cue_layers=0)
    model = SoundSeparator(config)
    torch.nn.init.ones_(model.separator.fusion.attention.gate)
    torch.nn.init.zeros_(model.activity_head.weight)
    sound = SoundBatch(
        torch.randn(1, 10240), torch.randn(1, 2, 10240), torch.zeros(1, 10240),
        torch.rand(1, 2, 16, 4), torch.ones(1, 2, 16, dtype=torch.bool), torch.arange(2)[None],
    )  # fmt: skip
    sound.visible[:, :, 4:9] = False
    mixer = SimpleNamespace(to=lambda device: None, mix=lambda seed, count: sound)
    mixer.at = lambda progress: mixer
    task = SeparationTask(model, mixer, {}, SoundLossSettings())  # type: ignore[arg-type]
    batch = {"list": "", "seed": 0, "key": ["0"], "part": 0, "parts": 1}
    losses = []
    for _ in range(2):
        losses.append(task.training_step(batch, 0.0, [], 0).logs["spectrum"])
        # A convolution of three frames follows.
        sound.cues[:, :, 5:8] += 9.0
    torch.testing.assert_close(losses[1], losses[0])


def test_blocks_are_compiled_for_training_though_their_flops_were_counted() -> None:
    model = SoundSeparator(SoundSeparatorConfig(SEPARATOR, width=8, cue_layers=0))
    compile_blocks(model.separator, "eager")
    mixer = SimpleNamespace(settings=SoundSettings(seconds=0.64))
    task = SeparationTask(model, mixer, {}, SoundLossSettings())  # type: ignore[arg-type]
    assert task.flops_per_sample() > 1e6
    torch._dynamo.utils.counters.clear()
    model(torch.randn(1, 10240), torch.zeros(1, 2, 16, 4))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_batches_made_together_are_parts_of_a_larger_one(
    speech: Path, tmp_path: Path, micro_batches: int
) -> None:
    """Of the distribution at the first of them, also for a task that begins between them."""
    bank = load_or_build_bank([speech / "train"], tmp_path)
    mixer = SoundMixer(bank, None, SoundSettings(seconds=0.64, ramp=1.0))
    model = SoundSeparator(SoundSeparatorConfig(SEPARATOR, width=8, cue_layers=0))
    steps = 10, micro_batches

    def new_task() -> SeparationTask:
        return SeparationTask(model, mixer, {}, SoundLossSettings(), steps)

    task = new_task()
    batches = iter(Loader(SeedStream(2, parts=3)))
    for group in range(2):
        first_step = 3 * group // micro_batches
        sounds = []
        keys = set()
        for number in range(3 * group, 3 * group + 3):
            batch = next(batches)
            step, micro_index = divmod(number, micro_batches)
            sounds.append(task.mixtures(batch, step / 10, micro_index))
            alone = new_task().mixtures(batch, step / 10, micro_index)
            torch.testing.assert_close(sounds[-1].mixture, alone.mixture)
            keys |= set(batch["key"])
        assert len(keys) == 6
        whole = mixer.at(first_step / 10).mix(batch["seed"], 6)
        for index, value in enumerate(whole):
            torch.testing.assert_close(torch.cat([sound[index] for sound in sounds]), value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loop.cuda_graph", "true"], "is for a GPU"),
        (["--loop.cuda_graph", "true", "--loop.grad_accum_steps", "2"], "grad_accum_steps at 1"),
        (["--data.made_together", "0"], "at least 1"),
    ],
)
def test_graphs_are_for_a_gpu(
    speech: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    command = words(tmp_path / "run", speech)
    with pytest.raises(UsageError, match=message):
        main([*command, "--loop.device", "cpu", *options])


@pytest.mark.parametrize("name", list(SEPARATORS))
def test_something_is_compiled_of_every_separator(name: str) -> None:
    separator = SEPARATORS.build(SEPARATORS.options(name)(), 8)
    compile_blocks(separator, "eager")
    assert any(module._compiled_call_impl is not None for module in separator.modules())
    with pytest.raises(UsageError, match="Linear has no repeated blocks"):
        compile_blocks(torch.nn.Linear(2, 2), "eager")
