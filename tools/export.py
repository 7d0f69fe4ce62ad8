"""`cavmae export CHECKPOINT --out DIR`: a model by itself, with a card that says what it is."""

import dataclasses
import json
import logging
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from cavmae.datasets.commandline import fill, parse, parser
from cavmae.datasets.errors import CavmaeError, UsageError
from cavmae.datasets.jsons import read_json, typed, value_as
from cavmae.datasets.storage import read_bytes
from cavmae.pretrain.checkpoints import CONFIG, PREPROCESSING, WEIGHTS, verify_model, write_hashes
from cavmae.pretrain.tensorfiles import read_tensors
from cavmae.tools.evaluate import ROWS

log = logging.getLogger("cavmae")
CARD = "README.md"
USES = {
    "speakers": (
        "Voices and pixels of the people in a video, under one index.",
        "from cavmae.tools.separating import Separator\n\n"
        'separator = Separator.from_pretrained("{name}")\n'
        'result = separator.separate("video.mp4", "out")',
        "cavmae separate video.mp4 --model {name} --out out",
    ),
    "encoder": (
        "A CAV-MAE: features of sound and pictures, pretrained without labels.",
        'from cavmae.pretrain.model import CAVMAE\n\nmodel = CAVMAE.from_pretrained("{name}")',
        "cavmae finetune speakers --config tiny --out run --data.train SHARDS "
        "--model.encoder {name}",
    ),
}


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """What goes with the weights.

    Args:
        name: of the model, as in its card; a name on the hub for ``push``.
        measures: folder of `cavmae evaluate --out`: its table goes into the card.
        license: of the weights, as the hub names it.
        push: also upload to the hub, under ``name``.
    """

    name: str | None = None
    measures: str | None = None
    license: str = "apache-2.0"
    push: bool = False


def main(words: Sequence[str]) -> int:
    made = parser("export", "A model by itself, with a card that says what it is.")
    made.add_argument("checkpoint", type=str, help="Folder of a checkpoint.")
    made.add_argument("--out", required=True, type=str, help="Folder to write.")
    made.add_class_arguments(ExportSettings)
    options = parse(made, words)
    settings = fill(ExportSettings, options)
    if settings.push and settings.name is None:
        raise UsageError("--push needs the --name under which the model shall be on the hub.")
    out = Path(options.out)
    export(Path(options.checkpoint), out, settings)
    log.info("Wrote %s.", out)
    if settings.push and settings.name is not None:
        _push(out, settings.name)
    return 0


def export(checkpoint: Path, out: Path, settings: ExportSettings) -> None:
    """Writes weights, configuration, preprocessing, their hashes and a card; it appears whole.

    Raises:
        CavmaeError: there is no checkpoint, it is damaged, or the folder is there already.
    """
    if out.exists():
        raise UsageError(f"{out} is there already: name another folder, or remove it.")
    for name in (WEIGHTS, CONFIG, PREPROCESSING):
        if not (checkpoint / name).is_file():
            raise CavmaeError(
                f"{checkpoint} is not a checkpoint of cavmae: {name} is missing. Name a folder "
                "such as RUN/checkpoints/000001000."
            )
    verify_model(checkpoint)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        temporary.mkdir(parents=True)
        for name in (WEIGHTS, CONFIG, PREPROCESSING):
            shutil.copy(checkpoint / name, temporary / name)
        card_of(checkpoint, settings, out.name).save(temporary / CARD)
        read_tensors(temporary / WEIGHTS, f"export another checkpoint than {checkpoint}")
        write_hashes(temporary)
        temporary.rename(out)
    except OSError as error:
        raise CavmaeError(f"{out} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def card_of(checkpoint: Path, settings: ExportSettings, folder: str) -> ModelCard:
    """What the model is, how it was trained, what it can do, and what nobody should expect."""
    config = read_json(checkpoint / CONFIG)
    kind = "speakers" if "slots" in json.dumps(config) else "encoder"
    what, python, command = USES[kind]
    name = settings.name or folder
    data = ModelCardData(
        license=settings.license,
        library_name="cavmae",
        tags=["audio-visual", "speech-separation" if kind == "speakers" else "self-supervised"],
    )
    parts = [f"# {name}", what, "## Use", f"```python\n{python.format(name=name)}\n```",
             f"```sh\n{command.format(name=name)}\n```", "## What it was trained with"]  # fmt: skip
    parts.append(_training(checkpoint))
    parts.append(f"Preprocessing: `{json.dumps(read_json(checkpoint / PREPROCESSING))}`")
    parts.append("## What it can do")
    parts.append(_measured(settings.measures))
    parts.append("## What not to expect")
    parts.append(
        "It knows the kind of people, cameras, rooms and languages that it was trained on. Voices "
        "are estimates: they can hold parts of other voices, and a mask can miss a person. Do not "
        "take what it gives as evidence of what somebody said. Recordings of people need their "
        "consent."
    )
    text = "\n\n".join(parts)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def _training(checkpoint: Path) -> str:
    """Step and configuration of the run that a checkpoint lies in."""
    run = checkpoint.resolve().parent.parent
    step = checkpoint.resolve().name
    told = f"Step {int(step)}." if step.isdigit() else ""
    config = run / "config.yaml"
    if not config.is_file():
        return f"{told} Its run's configuration is not known.".strip()
    # Where things lay on the machine that trained says nothing to others.
    text = read_bytes(str(config)).decode(errors="replace")
    text = re.sub(r"^(\s*\w+: ).*/", r"\1", text, flags=re.MULTILINE)
    return f"{told}\n\n```yaml\n{text}```".strip()


def _measured(folder: str | None) -> str:
    if folder is None:
        return "Not measured."
    path = Path(folder) / "measures.json"
    try:
        record = read_json(path)
        summary = typed(record, "summary", dict)
        columns = value_as(dict[str, dict[str, float | None]], summary, "summary")
        scenes = len(typed(typed(record, "scenes", dict), "model", list))
        listed = Path(typed(record, "list", str)).name
    except (FileNotFoundError, ValueError) as error:
        raise CavmaeError(
            f"{path} cannot be used ({error}): name a folder of `cavmae evaluate --out`."
        ) from error
    lines = [
        f"On {scenes} scenes of `{listed}`:", "",
        f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}",
    ]  # fmt: skip
    for name, unit, digits in ROWS:
        values = [column.get(name) for column in columns.values()]
        if any(value is not None for value in values):
            shown = ["-" if v is None else f"{v:.{digits}f}" for v in values]
            label = f"{name}, {unit}" if unit and unit not in name else name
            lines.append(f"| {label} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _push(folder: Path, name: str) -> None:
    try:
        huggingface_hub.create_repo(name, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=name, folder_path=folder)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise CavmaeError(
            f"{name} could not be uploaded ({str(error).splitlines()[0]}): log in with "
            f"`hf auth login`; the model lies in {folder}."
        ) from error
    log.info("Uploaded to %s.", name)
