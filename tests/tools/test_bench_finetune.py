"""`cavmae bench finetune` of speakers: a row for each variant."""

from pathlib import Path

import pytest

from cavmae.tools.bench import main
from cavmae.tools.benchmarks import finetuning
from tests.datasets.clips import clip, data_set_of
from tests.finetune.speaker.runs import write


@pytest.mark.long
def test_variants_have_rows_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, since a fresh one for every number takes long."""

    def in_turns(ways: dict, rounds: int, **_: bool) -> dict:  # type: ignore[type-arg]
        return {title: (call(*arguments), 100.0) for title, (call, arguments) in ways.items()}

    monkeypatch.setattr(finetuning, "in_turns", in_turns)
    monkeypatch.setattr(finetuning, "waiting_fraction", lambda bench: 0.0)
    built = []
    build = finetuning.build_speaker

    def spy(settings, *arguments):  # type: ignore[no-untyped-def]
        built.append(build(settings, *arguments))
        return built[-1]

    monkeypatch.setattr(finetuning, "build_speaker", spy)
    samples = [clip(n, speaker=f"s{n}", person=True, frames=66) for n in range(4)]
    shards = data_set_of(tmp_path / "fit", samples)
    write(shards)
    variants = ["--model.motion x3d --model.motion.width 8", "--model.lateral a-fs"]
    command = (
        f"finetune --data-set {shards.folder} --batch-size 1 --steps 1 --device cpu --variants"
    )
    assert main([*command.split(), f"[{', '.join(variants)}]"]) == 0
    printed = capsys.readouterr().out
    names = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    rows = ["training step", *(f"training step, {v}" for v in variants), "composing, one core"]
    assert names[2:] == rows
    assert [model.config.motion.name for model in built] == ["conv", "x3d", "conv"]
    assert [model.config.lateral.name for model in built] == ["none", "none", "a-fs"]
