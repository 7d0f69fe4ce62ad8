"""A model folder to publish: weights, hashes and a model card; its upload to the hub."""

import dataclasses
import json
import logging
import re
import shlex
import shutil
import uuid
from pathlib import Path
from types import NoneType
from typing import Any

import huggingface_hub
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from safetensors import SafetensorError

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import read_bytes, sha256_of, write_atomically
from cavmae.common.json_files import json_bytes, read_json, typed, value_as
from cavmae.common.quoting import visible
from cavmae.datasets.stream.features import FBANK_RATE
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.events.conditions import Conditions
from cavmae.finetune.inference.event_model import FIGURES
from cavmae.finetune.speaker.metric_table import METRICS
from cavmae.pretrain.engine.about import FIELD, About, read_facts
from cavmae.pretrain.engine.model_files import (
    AVERAGE,
    CONFIG,
    PREPROCESSING,
    WEIGHTS,
    verify_model,
    write_hashes,
)
from cavmae.pretrain.engine.tensor_files import narrowed, read_tensors, write_tensors
from cavmae.tools.export import ExportSettings

log = logging.getLogger("cavmae")
CARD = "README.md"
CONFIG_BYTES = 1 << 20
# Type of a model: its purpose, its use in Python and on the command line, its tags on the hub.
USES = {
    "speaker": (
        "Voices and masks of the people in a video, one pair for each person.",
        "from cavmae.finetune.inference import Separator\n\n"
        "separator = Separator.from_pretrained({name})\n"
        'result = separator.separate("video.mp4", "out")',
        "cavmae separate video.mp4 --model {name} --out out",
        ["audio-visual", "speech-separation"],
    ),
    "cav-mae": (
        "A CAV-MAE encoder: features of audio and video, pretrained without labels.",
        "from cavmae.pretrain.model import CAVMAE\n\nmodel = CAVMAE.from_pretrained({name})",
        "cavmae finetune speakers --config tiny --out run --data.train SHARDS "
        "--model.encoder-from {name}",
        ["audio-visual", "self-supervised"],
    ),
    "sound-separator": (
        "Separation of voices told by articulation cues: the part of a speaker model for sound.",
        "from cavmae.finetune.separation.model import SoundSeparator\n\n"
        "model = SoundSeparator.from_pretrained({name})",
        "cavmae finetune speakers --config tiny --out run --data.train SHARDS "
        "--model.encoder-from ENCODER --model.sound-from {name}",
        ["speech-separation"],
    ),
    "events": (
        "Classes of events in a recording, over time, from its audio and its video.",
        "from cavmae.finetune.inference import EventPredictor\n\n"
        "predictor = EventPredictor.from_pretrained({name})\n"
        'prediction = predictor.predict("video.mp4")\n'
        "prediction.timeline.probs  # [stretches of time, classes]",
        "cavmae predict video.mp4 --model {name} --out out",
        ["audio-visual", "audio-classification"],
    ),
}


def export(checkpoint: Path, out: Path, settings: ExportSettings) -> None:
    """Write weights, configuration, preprocessing, their hashes and a model card, atomically.

    Raises:
        CavmaeError: the checkpoint is missing or damaged, or the folder exists.
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
        kind, about = facts_of(checkpoint, settings)
        shutil.copy(checkpoint / PREPROCESSING, temporary / PREPROCESSING)
        config = {**_json(checkpoint / CONFIG), FIELD: dataclasses.asdict(about)}
        with write_atomically(temporary / CONFIG) as file:
            file.write(json_bytes(config, indent=1, sort_keys=True))
        weights = read_tensors(checkpoint / WEIGHTS, f"export another checkpoint than {checkpoint}")
        if settings.precision == "int8":
            write_tensors(temporary / WEIGHTS, narrowed(weights, 8))
        elif settings.precision == "fp16":
            write_tensors(temporary / WEIGHTS, narrowed(weights, 16))
        else:  # the very bytes
            shutil.copy(checkpoint / WEIGHTS, temporary / WEIGHTS)
        card_of(checkpoint, kind, about, settings, out.name).save(temporary / CARD)
        write_hashes(temporary)
        temporary.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CavmaeError(f"{out} cannot be written: {reason}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def facts_of(checkpoint: Path, settings: ExportSettings) -> tuple[str, About]:
    """Type of a model, and facts about it: those of the options, then those of an exported model.

    Raises:
        CavmaeError: the configuration is damaged, or of a type that is not exported.
    """
    try:
        kind, known = read_facts(checkpoint, "export another checkpoint")
    except ValueError as error:
        raise CavmaeError(
            f"{checkpoint / CONFIG}: {error}; export a checkpoint of this version of cavmae."
        ) from error
    if kind not in USES:
        raise CavmaeError(
            f"{checkpoint} is a model of the type {kind!r}: export one of {', '.join(USES)}."
        )
    return kind, About(
        settings.trained_on or known.trained_on, settings.expect or known.expect,
        settings.license or known.license or "apache-2.0",
    )  # fmt: skip


def card_of(
    checkpoint: Path, kind: str, about: About, settings: ExportSettings, folder: str
) -> ModelCard:
    """Model card: use, training data and configuration, metrics and limitations."""
    purpose, python, command, tags = USES[kind]
    name = settings.name or folder
    data = ModelCardData(
        license=about.license,
        library_name="cavmae",
        tags=tags,
    )
    folder_of_step = checkpoint.resolve()
    averaged = folder_of_step.name == AVERAGE
    folder_of_step = folder_of_step.parent if averaged else folder_of_step
    step = folder_of_step.name
    measures = Path(settings.measures) if settings.measures is not None else None
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"markdown": _markdown, "code": _code, "fenced": _fenced}
    text = environment.get_template("card.md.j2").render(
        data=Markup(data.to_yaml()),
        name=name,
        what=purpose,
        python=python.format(name=json.dumps(name)),
        command=command.format(name=shlex.quote(name)),
        kind=kind,
        about=about,
        precision=settings.precision,
        step=int(step) if step.isdigit() else None,
        averaged=averaged,
        classes=_classes(checkpoint / CONFIG) if kind in ("speaker", "events") else [],
        inputs=_event_inputs(checkpoint / CONFIG) if kind == "events" else None,
        config=_config(folder_of_step.parent, step),
        preprocessing=json.dumps(_json(checkpoint / PREPROCESSING)),
        measures=None if measures is None else _measures_of(kind, measures, checkpoint),
    )
    if settings.notes is not None:
        text = f"{text.rstrip()}\n\n{_notes(Path(settings.notes))}"
    return ModelCard(f"{text}\n")


def _notes(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--notes {path} cannot be read: {error}.") from error


def _markdown(text: str) -> Markup:
    """Escape text for a part of a line of Markdown."""
    return Markup(re.sub(r"([\\`*_{}\[\]<>()#+|~&!])", r"\\\1", visible(text)))


def _code(text: str) -> Markup:
    """Inline code, between more backticks than it contains."""
    quotation = visible(text)
    ticks = "`" * (_longest_ticks(quotation) + 1)
    space = " " if quotation.startswith("`") or quotation.endswith("`") else ""
    return Markup(f"{ticks}{space}{quotation}{space}{ticks}")


def _fenced(text: str, language: str) -> Markup:
    """Code block, between fences longer than any in it."""
    quotation = visible(text, keep="\n\t").strip("\n")
    fence = "`" * max(3, _longest_ticks(quotation) + 1)
    return Markup(f"{fence}{language}\n{quotation}\n{fence}")


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _json(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except FileNotFoundError as error:
        raise CavmaeError(f"{path} is missing.") from error
    if not isinstance(record, dict):
        raise CavmaeError(f"{path} is not a JSON object.")
    return record


def _classes(path: Path) -> list[str]:
    """Classes of a speaker model, which may serve as hints, or of an event classifier."""
    try:
        classes: list[str] = value_as(list[str], typed(_json(path), "classes", list), "classes")
    except ValueError as error:
        raise CavmaeError(f"{path}: {error}; copy the checkpoint again.") from error
    return classes


def _event_inputs(path: Path) -> str:
    """Sentence about the inputs of an event classifier."""
    try:
        record = _json(path)
        encoder = typed(record, "encoder", dict)
        seconds = typed(encoder, "audio_frames", int) / FBANK_RATE
        frames = typed(encoder, "frames", int)
        size = f"{typed(encoder, 'image_height', int)}x{typed(encoder, 'image_width', int)}"
        modalities = typed(record, "modalities", str)
        probs = "sigmoid" if typed(record, "multi_label", bool) else "softmax"
    except ValueError as error:
        raise CavmaeError(f"{path}: {error}; copy the checkpoint again.") from error
    counted = "1 frame" if frames == 1 else f"{frames} frames in one pass"
    grey = f" and {VIDEO_RATE} grey frames a second" if record.get("motion_height") else ""
    return (
        f"Windows of {seconds:g} s, {counted} of {size} pixels{grey}; fine-tuned {modalities}; "
        f"probabilities by {probs}."
    )


def _config(checkpoints: Path, step: str) -> str | None:
    """Configuration of the run of a checkpoint; None: unknown.

    Args:
        checkpoints: folder of the run's checkpoints; any other, as of an exported model, has none.
        step: of the checkpoint, in nine digits.
    """
    path = checkpoints.parent / "config.yaml"
    if checkpoints.name != "checkpoints" or not path.is_file():
        return None
    # A run that went on with another configuration has kept that of the steps before.
    earlier = sorted(checkpoints.parent.glob("config.until-*.yaml"))
    path = next((p for p in earlier if p.stem.removeprefix("config.until-") >= step), path)
    try:
        text = read_bytes(str(path), CONFIG_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CavmaeError(f"{path} cannot be read: {error}.") from error
    if len(text) > CONFIG_BYTES:
        raise CavmaeError(f"{path} is not a configuration: it has more than {CONFIG_BYTES} bytes.")
    # Folders of the training machine mean nothing to others.
    return re.sub(r"^(\s*(?:(?:- )+(?:\w+: )?|\w+: )).*/", r"\1", text, flags=re.MULTILINE)


def _measures_of(kind: str, folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Metrics table of a card: its title, its head, and its rows of a label and cells.

    Raises:
        CavmaeError: a field of the file is not what `cavmae evaluate` writes, or the metrics are of
            other weights than the checkpoint's.
    """
    path = folder / ("events.json" if kind == "events" else "measures.json")
    record = _json(path)
    measured = record.get("weights_sha256")  # files of former versions have none
    if measured not in (None, sha256_of(checkpoint / WEIGHTS)):
        raise CavmaeError(
            f"--measures {folder}: they are of other weights ({record.get('model')}) than "
            f"{checkpoint}: measure these with `cavmae evaluate`."
        )
    try:
        return _event_table(record) if kind == "events" else _speaker_table(record)
    except ValueError as error:
        raise CavmaeError(f"{path}: {error}; measure again with `cavmae evaluate`.") from error


def _speaker_table(record: dict[str, Any]) -> dict[str, Any]:
    scenes = len(typed(typed(record, "scenes", dict), "model", list))
    listed = Path(typed(record, "list", str)).name
    summary = typed(record, "summary", dict)
    columns = {name: typed(summary, name, dict) for name in summary}
    rows = []
    for name, metric in METRICS.items():
        known = [typed({name: None} | c, name, float, NoneType) for c in columns.values()]
        if any(value is not None for value in known):
            cells = ["-" if value is None else f"{value:.{metric.digits}f}" for value in known]
            rows.append((metric.label, cells))
    return {"title": f"On {scenes} scenes of", "source": listed, "head": list(columns),
            "rows": rows}  # fmt: skip


def _event_table(record: dict[str, Any]) -> dict[str, Any]:
    """Table with the conditions of each figure, without which it cannot be reproduced."""
    figures, classes = typed(record, "figures", dict), typed(record, "classes", list)
    measured = sum(typed(row, "clips", int) > 0 for row in classes)
    rows = []
    for name, label in FIGURES.items():
        figure = typed(figures, name, dict)
        value = typed(figure, "value", float, NoneType)
        conditions = [typed(figure, field, str) for field in Conditions._fields]
        rows.append((label, ["-" if value is None else f"{value:.4f}", *conditions]))
    title = f"On clips of {measured} of the {len(classes)} classes, measured with"
    source = Path(typed(record, "model", str)).name
    return {"title": title, "source": source, "head": ["value", *Conditions._fields],
            "rows": rows}  # fmt: skip


def push(folder: Path, name: str) -> None:
    """Uploads a model folder to the hub.

    Raises:
        CavmaeError: the hub refuses it.
    """
    try:
        huggingface_hub.create_repo(name, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=name, folder_path=folder)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise CavmaeError(
            f"{name} could not be uploaded ({str(error).splitlines()[0]}): log in with "
            f"`hf auth login`; the model lies in {folder}."
        ) from error
    log.info("Uploaded to %s.", name)
