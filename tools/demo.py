"""`cavmae demo`: the whole way, from rendered people to their voices and masks, on two CPU cores.

Every step is a command that a person could type, and is shown as that. What is done stays done:
run again, the demo goes on where it was interrupted, or begins anew with ``--clean``.
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

from cavmae.common.cli import fill, module_main, parse, parser, stop_on_signals
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import is_url, write_atomically
from cavmae.common.json_files import JSONError, json_bytes, read_json
from cavmae.datasets.media import MediaError, probe
from cavmae.tools.cli import COMMANDS

log = logging.getLogger("cavmae")
MARK = "made-by-cavmae-demo.json"
# All that the demo makes in its folder, and all that --clean removes.
MADE = (
    "talkers", "shards", "scenes", "pretrained", "held-out.jsonl", "before", "finetuned",
    "measured", "separated", "report.html", "verdict.json",
)  # fmt: skip
APART = ("pretrain", "finetune")
SEED, SCENE_SEED = 1, 77
# What the demo must show (dB of SI-SDR beside the mixture, and IoU).
GAINED, COVERED = 2.0, 0.6


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """What is made.

    Args:
        out: folder of everything.
        video: also take this recording apart.
        clean: remove what an earlier demo left there, and begin anew.
        clips: of one talker each that are rendered to learn from.
        pretrain_steps: of CAV-MAE.
        finetune_steps: of the speaker model.
        scenes: of held-out people that it is measured on.
    """

    out: str = "demo"
    video: str | None = None
    clean: bool = False
    clips: int = 240
    pretrain_steps: int = 40
    finetune_steps: int = 280
    scenes: int = 24


@dataclasses.dataclass(frozen=True)
class DemoStep:
    """A command, and what is there once it has run.

    Attributes:
        title: that it is announced by.
        words: of ``cavmae``.
        made: file by which it is known to be done; None: the command itself knows.
        extra: if it fails, that is told, and the demo goes on.
    """

    title: str
    words: tuple[str, ...]
    made: Path | None = None
    extra: bool = False


def main(words: Sequence[str]) -> int:
    made = parser("demo", "The whole way on a small corpus that it makes itself.")
    made.add_class_arguments(DemoSettings)
    settings = fill(DemoSettings, parse(made, words))
    with stop_on_signals():
        return demo(settings)


def demo(settings: DemoSettings) -> int:
    """Runs what is not done yet.

    Returns:
        0; 1 if what was learned is less than it must be.

    Raises:
        CavmaeError: a step failed, or the folder is somebody else's.
    """
    out = Path(settings.out)
    if settings.video is not None and not is_url(settings.video):
        try:
            probe(settings.video)  # not found out after minutes of learning
        except MediaError as error:
            raise UsageError(
                f"--video {settings.video} cannot be taken apart: {error.detail}."
            ) from error
    _prepare(out, settings)
    started = time.monotonic()
    for number, step in enumerate(steps(out, settings), 1):
        _run(number, step)
    page = (out / "report.html").resolve()
    good = _verdict(out, settings.scenes)
    log.info("\nDone in %.1f minutes. Open %s in a browser.", (time.monotonic() - started) / 60,
             page.as_uri())  # fmt: skip
    return 0 if good else 1


def _prepare(out: Path, settings: DemoSettings) -> None:
    mark = out / MARK
    if out.exists() and any(out.iterdir()) and not mark.exists():
        raise UsageError(f"{out} holds something else: name another folder with --out.")
    how = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in ("out", "video", "clean")
    }
    out.mkdir(parents=True, exist_ok=True)
    if settings.clean:
        for name in MADE:
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
    elif mark.exists():
        try:
            before = read_json(mark, remedy="begin anew with --clean")
        except JSONError as error:
            raise UsageError(str(error)) from error
        if before != how:
            raise UsageError(
                f"{out} was made with other settings ({json.dumps(before)}): name another folder "
                "with --out, or begin anew with --clean."
            )
    with write_atomically(mark) as file:
        file.write(json_bytes(how))


def steps(out: Path, settings: DemoSettings) -> Iterator[DemoStep]:
    """All steps, in order."""
    talkers, shards, scenes = out / "talkers", out / "shards", out / "scenes"
    easy = (
        "--off-screen-voice", "0", "--noise", "0", "--music", "0", "--desync", "0",
        "--mouth-occlusion", "0",
    )  # fmt: skip
    yield DemoStep(
        "People are drawn who talk",
        ("render-talkers", "--out", f"{talkers}", "--clips", f"{settings.clips}", "--seed",
         f"{SEED}", "--speakers", "80", "--height", "112", "--valid-share", "0.15",
         "--test-share", "0", "--silent", "0", *easy),
    )  # fmt: skip
    for split in ("train", "valid"):
        yield DemoStep(
            f"Their clips become shards ({split})",
            ("shard", f"{talkers / split}.csv", "--out", f"{shards / split}", "--profile",
             "speakers", "--shorter-side", "112"),
        )  # fmt: skip
        yield DemoStep(
            f"The shards are checked ({split})",
            ("check", f"{shards / split}", *(("--compose", "true", "--scenes.height", "112",
             "--scenes.width", "112", "--scenes.people", "[0,1,0]") if split == "train" else ())),
            shards / split / "stats.json",
        )  # fmt: skip
    pretrained = out / "pretrained"
    encoder = pretrained / "checkpoints" / f"{settings.pretrain_steps:09d}"
    yield DemoStep(
        "CAV-MAE learns from them, without labels",
        ("pretrain", "--config", "tiny", "--out", f"{pretrained}", "--resume", "auto",
         "--data.train", f"{shards / 'train'}", "--data.held_out", f"{shards / 'valid'}",
         "--data.batch_size", "32", "--loop.steps", f"{settings.pretrain_steps}",
         "--loop.evaluate_every", f"{settings.pretrain_steps}", "--loop.save_every", "20",
         "--loop.log_every", "5"),
    )  # fmt: skip
    yield DemoStep(
        "What it makes of masked pictures and sound",
        ("inpaint", f"{encoder}", f"{shards / 'valid'}", "--out",
         f"{pretrained / 'reconstructions.png'}"),
        pretrained / "reconstructions.png",
    )  # fmt: skip
    yield DemoStep(
        "Which sound goes with which picture",
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
        "Scenes of held-out people are drawn",
        ("evaluate", f"{shards / 'valid'}", "--list", f"{held_out}", "--make",
         f"{settings.scenes}", *scene),
        held_out,
    )  # fmt: skip
    learning = (
        "--config", "demo", "--resume", "auto", "--data.train", f"{shards / 'train'}",
        "--model.encoder", f"{encoder}", *scene,
    )  # fmt: skip
    before, after = out / "before", out / "finetuned"
    yield DemoStep(
        "The speaker model before it learns",
        ("finetune", "speakers", "--out", f"{before}", *learning, "--loop.steps", "1",
         "--optimizer.lr", "1e-9"),
    )  # fmt: skip
    yield DemoStep(
        "The speaker model learns who is heard where",
        ("finetune", "speakers", "--out", f"{after}", *learning, "--loop.steps",
         f"{settings.finetune_steps}"),
    )  # fmt: skip
    model = after / "checkpoints" / f"{settings.finetune_steps:09d}"
    for name, checkpoint in (("before", before / "checkpoints" / f"{1:09d}"), ("after", model)):
        found = out / "measured" / name
        yield DemoStep(
            f"It is measured on people it never saw ({name})",
            ("evaluate", f"{shards / 'valid'}", "--list", f"{held_out}", "--model",
             f"{checkpoint}", "--out", f"{found}", "--references",
             "true" if name == "after" else "false"),
            found / "measures.json",
        )  # fmt: skip
    yield DemoStep(
        "Two strangers talk at once",
        ("render-talkers", "--out", f"{scenes}", "--clips", "2", "--seed", f"{SCENE_SEED}",
         "--people", "2", "--height", "224", "--width", "224", "--valid-share", "0",
         "--test-share", "1", "--silent", "0", "--pauses", "0", "--look-alikes", "0",
         "--similar-voices", "0", *easy),
    )  # fmt: skip
    rendered = [str(scenes / "clips" / f"{n:06d}" / f"{n:06d}.mp4") for n in range(2)]
    apart = ("--model", f"{model}", "--out", f"{out / 'separated'}")
    yield DemoStep("Voices and masks are taken out of the video", ("separate", *rendered, *apart))
    if settings.video is not None:
        yield DemoStep("And out of yours", ("separate", settings.video, *apart), extra=True)
    yield DemoStep(
        "All of it on a page",
        ("report", f"{pretrained}", f"{after}", f"{out / 'measured' / 'before'}",
         f"{out / 'measured' / 'after'}", f"{out / 'separated'}", f"{shards / 'train'}",
         "--out", f"{out / 'report.html'}", "--title", "cavmae demo"),
    )  # fmt: skip


def _run(number: int, step: DemoStep) -> None:
    log.info("\n%d. %s", number, step.title)
    log.info("   $ cavmae %s", shlex.join(step.words))
    if step.made is not None and step.made.exists():
        log.info("   done before")
        return
    started = time.monotonic()
    if step.words[0] in APART:
        code = _in_a_process(step.words)
    else:  # importing PyTorch anew for every step would take a minute in all
        module = importlib.import_module(COMMANDS[step.words[0]][0])
        try:
            code = module.main(list(step.words[1:])) or 0
        except CavmaeError as error:
            if not step.extra:
                raise
            log.error("   %s", error)
            code = 1
    if code and step.extra:
        log.error("   This one failed; the rest goes on.")
    elif code:
        raise CavmaeError(
            f"Step {number} ({step.title}) failed with exit code {code}; what it said stands "
            "above. Run the same command again to go on."
        )
    log.info("   %.0f s", time.monotonic() - started)


def _in_a_process(words: Sequence[str]) -> int:
    """Training has a process of its own: it takes signals for itself, and saves before it goes."""
    process = subprocess.Popen([sys.executable, "-m", "cavmae.tools.cli", *words])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def _verdict(out: Path, scenes: int) -> bool:
    """Tells what was learned, and whether it is enough."""
    found = {}
    for name in ("before", "after"):
        record = read_json(out / "measured" / name / "measures.json")
        found[name] = record["summary"]
    after, before = found["after"]["model"], found["before"]["model"]
    blank = found["after"]["frames_blanked"]
    gained, covered = "si_sdri", "iou"
    log.info("\nOn %d scenes of people it never saw, two talking at once:", scenes)
    for name, values in (("before learning", before), ("after", after),
                         ("after, pictures blanked", blank)):  # fmt: skip
        log.info("  %-24s voices %+.1f dB SI-SDR beside the mixture, masks IoU %.2f", name,
                 values[gained], values[covered])  # fmt: skip
    good = after[gained] >= GAINED and after[covered] >= COVERED
    if not good:
        log.error("That is less than %+.1f dB and IoU %.1f: something is wrong.", GAINED, COVERED)
    with write_atomically(out / "verdict.json") as file:
        told = {"before": before, "after": after, "good": good}
        file.write(json_bytes(told, indent=1))
    return bool(good)


if __name__ == "__main__":
    module_main(main)
