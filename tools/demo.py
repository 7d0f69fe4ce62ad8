"""`cavmae demo`: every step from rendered talkers to separated voices and masks, on two CPU cores.

Every step is a command of the program and is printed as one. Finished steps are kept: a second run
resumes where the first was interrupted, or starts over with ``--clean``.
"""

import dataclasses
import importlib
import json
import logging
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cavmae.common.cli import module_main, parse_settings, parser, stop_on_signals
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import is_url, make_folder, write_atomically
from cavmae.common.json_files import JSONError, json_bytes, read_json
from cavmae.tools.cli import COMMANDS

log = logging.getLogger("cavmae")
MARK = "made-by-cavmae-demo.json"
# Everything that the demo writes into its folder, and everything that --clean removes.
OUTPUTS = (
    "talkers", "shards", "scenes", "pretrained", "held-out.jsonl", "before", "finetuned",
    "measured", "separated", "separated-box", "report.html", "verdict.json",
)  # fmt: skip
OWN_PROCESS = ("pretrain", "finetune")
SEED, SCENE_SEED = 1, 77
# Below these (SI-SDR improvement in dB, IoU) the demo fails.
MIN_SI_SDRI, MIN_IOU = 2.0, 0.6


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """Options of `cavmae demo`.

    Args:
        out: folder of all outputs.
        video: another recording to separate.
        clean: remove the outputs of an earlier demo and start over.
        quick: a tenth of the clips and two training steps, to see that every step runs: the
            metrics stay below what the demo asks for, so it ends with exit code 1.
    """

    out: str = "demo"
    video: str | None = None
    clean: bool = False
    quick: bool = False


class DemoSizes(NamedTuple):
    """Amount of work of a demo.

    Attributes:
        clips: rendered training clips, of one talker each.
        pretrain_steps: training steps of CAV-MAE.
        finetune_steps: training steps of the speaker model.
        scenes: evaluated scenes of held-out people.
    """

    clips: int
    pretrain_steps: int
    finetune_steps: int
    scenes: int


FULL = DemoSizes(clips=240, pretrain_steps=40, finetune_steps=280, scenes=24)
QUICK = DemoSizes(clips=24, pretrain_steps=2, finetune_steps=2, scenes=4)


@dataclasses.dataclass(frozen=True)
class DemoStep:
    """Command of the demo and its output.

    Attributes:
        title: printed before the command.
        words: arguments of ``cavmae``.
        output: file that exists once the step is done; None: the command skips finished work
            itself.
        optional: a failure is logged, and the demo continues.
    """

    title: str
    words: tuple[str, ...]
    output: Path | None = None
    optional: bool = False


def main(words: Sequence[str]) -> int:
    """Run the demo; see :func:`demo`."""
    arguments = parser("demo", "Every step from raw clips to separation, on rendered talkers.")
    settings, _ = parse_settings(arguments, DemoSettings, words)
    with stop_on_signals():
        return demo(settings)


def demo(settings: DemoSettings) -> int:
    """Run the steps that are not done yet.

    Returns:
        0; 1 if the metrics after training are below :data:`MIN_SI_SDRI` or :data:`MIN_IOU`.

    Raises:
        UsageError: the video cannot be read, or the folder holds other files or other settings.
        CavmaeError: a step failed.
    """
    out = Path(settings.out)
    if settings.video is not None and not is_url(settings.video):
        from cavmae.datasets.media import MediaError, probe

        try:
            probe(settings.video)  # fails now rather than after minutes of training
        except MediaError as error:
            raise UsageError(
                f"--video {settings.video} cannot be separated: {error.detail}."
            ) from error
    _prepare(out, settings)
    started = time.monotonic()
    for number, step in enumerate(steps(out, settings), 1):
        _run(number, step)
    page = (out / "report.html").resolve()
    passed = _verdict(out, _sizes(settings).scenes)
    log.info("\nDone in %.1f minutes. Open %s in a browser.", (time.monotonic() - started) / 60,
             page.as_uri())  # fmt: skip
    return 0 if passed else 1


def _prepare(out: Path, settings: DemoSettings) -> None:
    mark = out / MARK
    if out.is_dir() and any(out.iterdir()) and not mark.exists():
        raise UsageError(f"{out} holds other files: name another folder with --out.")
    options = _sizes(settings)._asdict()
    make_folder(out)
    if settings.clean:
        for name in OUTPUTS:
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
    elif mark.exists():
        try:
            before = read_json(mark, remedy="start over with --clean")
        except JSONError as error:
            raise UsageError(str(error)) from error
        if before != options:
            raise UsageError(
                f"{out} was made with other settings ({json.dumps(before)}): name another folder "
                "with --out, or start over with --clean."
            )
    with write_atomically(mark) as file:
        file.write(json_bytes(options))


def _sizes(settings: DemoSettings) -> DemoSizes:
    return QUICK if settings.quick else FULL


def steps(out: Path, settings: DemoSettings) -> Iterator[DemoStep]:
    """All steps of the demo, in order."""
    sizes = _sizes(settings)
    talkers, shards, scenes = out / "talkers", out / "shards", out / "scenes"
    easy = (
        "--off-screen-voice", "0", "--noise", "0", "--music", "0", "--desync", "0",
        "--mouth-occlusion", "0", "--profiles", "0", "--gestures", "0", "--crossings", "0",
        "--depth", "0", "--cut-off", "0", "--textures", "0", "--textured-backgrounds", "0",
        "--distractors", "0",
    )  # fmt: skip
    yield DemoStep(
        "Render talkers",
        ("render-talkers", "--out", f"{talkers}", "--clips", f"{sizes.clips}", "--seed",
         f"{SEED}", "--speakers", "80", "--height", "112", "--valid-share", "0.15",
         "--test-share", "0", "--silent", "0", *easy),
    )  # fmt: skip
    for split in ("train", "valid"):
        yield DemoStep(
            f"Convert the clips to shards ({split})",
            ("shard", f"{talkers / split}.csv", "--out", f"{shards / split}", "--profile",
             "speakers", "--shorter-side", "112"),
        )  # fmt: skip
        yield DemoStep(
            f"Check the shards ({split})",
            ("check", f"{shards / split}", *(("--compose", "true", "--scenes.height", "112",
             "--scenes.width", "112", "--scenes.people", "[0,1,0]") if split == "train" else ())),
            shards / split / "stats.json",
        )  # fmt: skip
    pretrained = out / "pretrained"
    encoder = pretrained / "checkpoints" / f"{sizes.pretrain_steps:09d}"
    yield DemoStep(
        "Pretrain CAV-MAE without labels",
        ("pretrain", "--config", "tiny", "--out", f"{pretrained}", "--resume", "auto",
         "--data.train", f"{shards / 'train'}", "--data.held_out", f"{shards / 'valid'}",
         "--data.batch_size", "32", "--loop.steps", f"{sizes.pretrain_steps}",
         "--loop.evaluate_every", f"{sizes.pretrain_steps}", "--loop.save_every", "20",
         "--loop.log_every", "5"),
    )  # fmt: skip
    yield DemoStep(
        "Reconstruct masked frames and audio",
        ("inpaint", f"{encoder}", f"{shards / 'valid'}", "--out",
         f"{pretrained / 'reconstructions.png'}"),
        pretrained / "reconstructions.png",
    )  # fmt: skip
    yield DemoStep(
        "Retrieve video by audio and audio by video",
        ("retrieve", f"{encoder}", f"{shards / 'valid'}", "--json",
         f"{pretrained / 'retrieval.json'}"),
        pretrained / "retrieval.json",
    )  # fmt: skip
    scene = (
        "--compose.height", "112", "--compose.width", "112", "--compose.people", "[0,1,0]",
        "--compose.all_off_screen_prob", "0", "--compose.silent_prob", "0",
        "--compose.off_screen_prob", "0", "--compose.noise_prob", "0",
        "--compose.letterbox_prob", "0", "--compose.min_scale", "0.8", "--compose.max_scale", "1.1",
    )  # fmt: skip
    held_out = out / "held-out.jsonl"
    yield DemoStep(
        "Draw scenes of held-out people",
        ("make-scenes", f"{shards / 'valid'}", "--list", f"{held_out}", "--count",
         f"{sizes.scenes}", *scene),
        held_out,
    )  # fmt: skip
    training = (
        "--config", "demo", "--resume", "auto", "--data.train", f"{shards / 'train'}",
        "--model.encoder-from", f"{encoder}", *scene,
    )  # fmt: skip
    before, after = out / "before", out / "finetuned"
    yield DemoStep(
        "Save the speaker model before training",
        ("finetune", "speakers", "--out", f"{before}", *training, "--loop.steps", "1",
         "--optimizer.lr", "1e-9"),
    )  # fmt: skip
    yield DemoStep(
        "Train the speaker model",
        ("finetune", "speakers", "--out", f"{after}", *training, "--loop.steps",
         f"{sizes.finetune_steps}"),
    )  # fmt: skip
    model = after / "checkpoints" / f"{sizes.finetune_steps:09d}"
    for name, checkpoint in (("before", before / "checkpoints" / f"{1:09d}"), ("after", model)):
        measured = out / "measured" / name
        yield DemoStep(
            f"Evaluate it on held-out people ({name} training)",
            ("evaluate", f"{shards / 'valid'}", "--list", f"{held_out}", "--model",
             f"{checkpoint}", "--out", f"{measured}", "--references",
             "true" if name == "after" else "false"),
            measured / "measures.json",
        )  # fmt: skip
    yield DemoStep(
        "Render videos of two held-out people who talk at once",
        ("render-talkers", "--out", f"{scenes}", "--clips", "2", "--seed", f"{SCENE_SEED}",
         "--people", "2", "--height", "224", "--width", "224", "--valid-share", "0",
         "--test-share", "1", "--silent", "0", "--pauses", "0", "--look-alikes", "0",
         "--similar-voices", "0", *easy),
    )  # fmt: skip
    rendered = [str(scenes / "clips" / f"{n:06d}" / f"{n:06d}.mp4") for n in range(2)]
    for whose, place in (
        ("the model trained here", ("--model", f"{model}", "--out", f"{out / 'separated'}")),
        ("the model in the box", ("--out", f"{out / 'separated-box'}")),
    ):
        yield DemoStep(f"Separate voices and masks with {whose}", ("separate", *rendered, *place))
        if settings.video is not None:
            yield DemoStep(
                f"Separate your video with {whose}", ("separate", settings.video, *place),
                optional=True,
            )  # fmt: skip
    yield DemoStep(
        "Write the report",
        ("report", f"{pretrained}", f"{after}", f"{out / 'measured' / 'before'}",
         f"{out / 'measured' / 'after'}", f"{out / 'separated'}", f"{out / 'separated-box'}",
         f"{shards / 'train'}", "--out", f"{out / 'report.html'}", "--title", "cavmae demo"),
    )  # fmt: skip


def _run(number: int, step: DemoStep) -> None:
    log.info("\n%d. %s", number, step.title)
    log.info("   $ cavmae %s", shlex.join(step.words))
    if step.output is not None and step.output.exists():
        log.info("   done before")
        return
    started = time.monotonic()
    if step.words[0] in OWN_PROCESS:
        code = _run_process(step.words)
    else:  # a process for each step would spend a minute in all on imports of PyTorch
        module = importlib.import_module(COMMANDS[step.words[0]].module)
        try:
            code = module.main(list(step.words[1:])) or 0
        except CavmaeError as error:
            if not step.optional:
                raise
            log.error("   %s", error)
            code = 1
    if code and step.optional:
        log.error("   This step failed; the demo continues without it.")
    elif code:
        raise CavmaeError(
            f"Step {number} ({step.title}) failed with exit code {code}; its messages are above. "
            "Run the same command again to resume."
        )
    log.info("   %.0f s", time.monotonic() - started)


def _run_process(words: Sequence[str]) -> int:
    """Run a training command in its own process, which handles signals and saves before it ends."""
    process = subprocess.Popen([sys.executable, "-m", "cavmae.tools.cli", *words])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def _verdict(out: Path, scenes: int) -> bool:
    """Log the metrics before and after training; return whether they reach the thresholds."""
    summaries = {}
    for name in ("before", "after"):
        record = read_json(out / "measured" / name / "measures.json")
        summaries[name] = record["summary"]
    after, before = summaries["after"]["model"], summaries["before"]["model"]
    blanked = summaries["after"]["frames_blanked"]
    log.info("\nOn %d scenes of two held-out people who talk at once:", scenes)
    for name, values in (("before training", before), ("after training", after),
                         ("after, frames blanked", blanked)):  # fmt: skip
        log.info("  %-24s SI-SDR improvement %+.1f dB, IoU of masks %.2f", name,
                 values["si_sdri"], values["iou"])  # fmt: skip
    passed = after["si_sdri"] >= MIN_SI_SDRI and after["iou"] >= MIN_IOU
    if not passed:
        log.error("That is less than %+.1f dB and IoU %.1f: training went wrong, see the logs.",
                  MIN_SI_SDRI, MIN_IOU)  # fmt: skip
    with write_atomically(out / "verdict.json") as file:
        record = {"before": before, "after": after, "good": passed}
        file.write(json_bytes(record, indent=1))
    return bool(passed)


if __name__ == "__main__":
    module_main(main)
