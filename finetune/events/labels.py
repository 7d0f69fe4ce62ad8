"""Classes of events: of a data set, or of a file in the format of AudioSet's class list."""

import csv
import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.shard_reader import Access, ShardOpener
from cavmae.finetune.events.config import numbered_classes

log = logging.getLogger("cavmae")
COLUMNS = "index", "mid", "display_name"
MOST_LISTED = 5  # classes in a message


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Classes, and the other labels by which clips may name them.

    Args:
        names: of the classes, in the order of the logits.
        ids: class name of each id, such as AudioSet's ``/m/09x0r``.
        source: where the classes are from, for errors.
    """

    names: tuple[str, ...]
    ids: Mapping[str, str]
    source: str

    def class_of(self, label: str) -> str | None:
        """Name of the class of a label; None: it is none."""
        return label if label in self.names else self.ids.get(label)


def read_class_list(path: Path) -> ClassList:
    """Reads a CSV file with the columns ``index``, ``mid`` and ``display_name``.

    This is the format of AudioSet's ``class_labels_indices.csv``: numbers from 0, ids, names.

    Raises:
        CavmaeError: the file is missing or of another format.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        absent = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if absent:
            raise ValueError(f"column {absent[0]} is missing")
        table = [(int(row["index"]), row["mid"], row["display_name"]) for row in rows]
        if not all(isinstance(text, str) and text for _, *texts in table for text in texts):
            raise ValueError("a row is too short")
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise CavmaeError(
            f"{path} is no list of classes with the columns {', '.join(COLUMNS)} ({error}): name "
            "one such as AudioSet's class_labels_indices.csv."
        ) from error
    if not table:
        raise CavmaeError(f"{path} lists no classes: name another file.")
    numbers, ids, names = zip(*sorted(table), strict=True)
    if numbers != tuple(range(len(table))):
        raise CavmaeError(f"{path}: its {COLUMNS[0]} has to count the classes from 0: correct it.")
    for column, texts in zip(COLUMNS[1:], (ids, names), strict=True):
        repeated = next((text for text, count in Counter(texts).items() if count > 1), None)
        if repeated is not None:
            raise CavmaeError(f"{path}: {column} {repeated!r} occurs twice: correct the file.")
    return ClassList(names, dict(zip(ids, names, strict=True)), str(path))


def class_list(
    labels: str | None, manifests: Sequence[Manifest], model_classes: Sequence[str] | None = None
) -> ClassList:
    """Classes of a run or of an evaluation.

    Args:
        labels: file of :func:`read_class_list`; None: the labels that the clips have.
        manifests: data sets whose labels, merged by name, are the classes where nothing else says
            them.
        model_classes: of the weights; None: there are none with a head.

    Raises:
        UsageError: the file has other classes than the weights; or nothing says any.
        CavmaeError: the file cannot be used.
    """
    if labels is None:
        if model_classes is not None:
            return ClassList(tuple(model_classes), {}, "the model")
        for manifest in manifests:
            if not manifest.labels:
                raise UsageError(
                    f"No clip of {manifest.folder} has a label: shard a table with a column labels."
                )
        names = sorted({label for manifest in manifests for label in manifest.labels})
        return ClassList(tuple(names), {}, ", ".join(own.folder for own in manifests))
    listed = read_class_list(Path(labels))
    if model_classes is None:
        return listed
    own = tuple(model_classes)
    # Published weights know the numbers of their classes, the file says their names.
    if own == listed.names or own == numbered_classes(len(listed.names)):
        return listed
    strange = [name for name in own if name not in listed.names]
    if len(own) != len(listed.names):
        problem = f"has {len(listed.names)} classes, the model {len(own)}"
    elif strange:
        problem = f"does not have the model's class {strange[0]!r}"
    else:
        number = next(n for n, name in enumerate(own) if name != listed.names[n])
        problem = (
            f"has the model's classes in another order: class {number} is "
            f"{listed.names[number]!r}, not {own[number]!r}"
        )
    raise UsageError(f"{labels} {problem}: name the file that the model was trained with.")


def check_labels(
    manifest: Manifest, classes: ClassList, access: Access, multi_label: bool
) -> Counter[str]:
    """Checks the labels of all clips.

    Returns:
        number of clips of each class.

    Raises:
        CavmaeError: a clip has no label, one that is no class, or several where a clip has one.
    """
    counts: Counter[str] = Counter()
    class_of = {label: classes.class_of(label) for label in manifest.labels}
    for number, shard in enumerate(manifest.shards):
        for index, labels in enumerate(manifest.sample_labels(shard)):
            names = [class_of[label] for label in labels]
            problem = None
            if not labels:
                problem = "has no label: give it one, or leave it out of the shards"
            elif None in names:
                problem = (
                    f"has the label {labels[names.index(None)]!r}, which is none of the "
                    f"{len(classes.names)} classes of {classes.source}: name a list of all classes "
                    "with --data.labels (`cavmae evaluate`: --labels), or correct the label"
                )
            elif not multi_label and len(set(names)) > 1:
                problem = (
                    f"has the labels {', '.join(labels)}: with model.no-multi-label a clip has "
                    "only one; choose model.multi_label"
                )
            if problem is not None:
                key = _key(manifest, access, number, index)
                raise CavmaeError(f"Clip {key} in {manifest.path_of(shard)} {problem}.")
            counts.update(name for name in set(names) if name is not None)
    return counts


def warn_of_rare_classes(counts: Mapping[str, int], classes: ClassList, data_set: str) -> None:
    """Logs the classes that no clip or only one clip of a training set has."""
    for count, text in ((0, "no clip"), (1, "a single clip")):
        rare = [name for name in classes.names if counts.get(name, 0) == count]
        if rare:
            listed = ", ".join(rare[:MOST_LISTED]) + (", ..." if len(rare) > MOST_LISTED else "")
            log.warning(
                "%d of %d classes have %s in %s: %s.", len(rare), len(classes.names), text,
                data_set, listed,
            )  # fmt: skip


def _key(manifest: Manifest, access: Access, shard: int, index: int) -> str:
    opener = ShardOpener(manifest, access)
    try:
        return opener.get(shard).entries[index].key
    finally:
        opener.close()
