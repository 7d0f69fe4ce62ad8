"""Takeover of a data set at a store, or of a part of it, by a machine whose local folder lacks it.

The state of the last run that uploaded something is fetched into the local folder, in which the job
then goes on as after a kill: what the store has is not extracted again. Before anything is written,
the settings have to be those of the data set, and every planned input has to be among the inputs of
this run.
"""

import dataclasses
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from cavmae.common.errors import CavmaeError
from cavmae.common.files import flush_folder, write_atomically
from cavmae.common.stores import Store
from cavmae.datasets.format.manifest import NAME, Manifest
from cavmae.datasets.sharding.input_plan import Plan
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.job_state import (
    ARRAY,
    SHARES,
    InputLayout,
    check_settings,
    remove_work,
)
from cavmae.datasets.sharding.upload_claim import UploadProgress
from cavmae.datasets.sharding.upload_record import Content, UploadRecord

# Files of data sets of this program.
_OURS = re.compile(
    r"(?:manifest|skipped|inputs|uploads|progress|clips)"
    r"(?:-part-(?P<number>\d+)-of-(?P<parts>\d+))?(?:\.jsonl?|-\d{6,}\.tar)"
)


def adopt_progress(
    layout: InputLayout,
    store: Store,
    record: UploadRecord,
    progress: UploadProgress,
    items: Sequence[Input],
) -> None:
    """Fetches the state of an unfinished data set or part into the local folder.

    A kill leaves the folder with an id that the store does not name, so that the next run begins
    anew.

    Args:
        layout: of the folder, whose lock this process holds.
        store: place of the data set.
        record: of the folder's uploads.
        progress: at the store.
        items: inputs of this run.

    Raises:
        CavmaeError: it plans inputs that are not among ``items``, or the store cannot be read.
    """
    with tempfile.TemporaryDirectory(dir=layout.folder, prefix=".store-") as folder:
        fetched = InputLayout(Path(folder), layout.name, layout.part)
        paths = [path for path in (fetched.plan,) if store.fetch(path.name, path)]
        _check_inputs(fetched, store, items)
        record.restart(
            {shard.file: Content(shard.bytes, shard.sha256) for shard in progress.state.shards}
            | {path.name: Content.of(path) for path in paths}
        )
        _replace(layout, paths)
    with write_atomically(layout.skipped) as file:
        file.write(progress.skipped.encode())
    # Counts of the files of this folder begin anew.
    state = dataclasses.replace(
        progress.state, skipped_bytes=len(progress.skipped.encode()), sealed=0, sealed_bytes=0,
        samples=0,
    )  # fmt: skip
    state.save(layout)


def adopt_manifest(
    layout: InputLayout,
    store: Store,
    record: UploadRecord,
    items: Sequence[Input],
    settings: dict[str, object],
) -> None:
    """Fetches what is known of a complete data set or part, unless the local folder has it.

    Raises:
        CavmaeError: as :func:`adopt_progress`; or it has other settings, or is none of this
            program.
    """
    name = layout.manifest.name
    is_sent = layout.manifest.exists() and record.is_done(name, Content.of(layout.manifest))
    if is_sent and store.holds(layout.manifest, name):
        return
    with tempfile.TemporaryDirectory(dir=layout.folder, prefix=".store-") as folder:
        fetched = InputLayout(Path(folder), layout.name, layout.part)
        wanted = (fetched.plan, fetched.skipped, fetched.manifest)
        paths = [path for path in wanted if store.fetch(path.name, path)]
        manifest = _manifest_of(fetched)
        if manifest is None or (manifest.inputs and fetched.plan not in paths):
            if is_sent:
                return  # damaged at the store: it is sent again
            raise foreign(store, name)
        check_settings(store.address(name), manifest.settings, settings)
        _check_inputs(fetched, store, items)
        record.restart(
            {shard.file: Content(shard.bytes, shard.sha256) for shard in manifest.shards}
            | {path.name: Content.of(path) for path in paths}
        )
        _replace(layout, paths)


def _manifest_of(layout: InputLayout) -> Manifest | None:
    try:
        return layout.read_manifest()
    except (CavmaeError, FileNotFoundError):
        return None


def _check_inputs(fetched: InputLayout, store: Store, items: Sequence[Input]) -> None:
    outside = Plan(fetched).first_outside(items)
    if outside is not None:
        raise CavmaeError(
            f"{store.address(fetched.plan.name)} plans {outside.source}, which is not among the "
            "inputs of this command, so another data set is there: choose another --out, name the "
            "same inputs, or give the --local-folder of its last run."
        )


def _replace(layout: InputLayout, paths: Iterable[Path]) -> None:
    """Replaces the state of a folder, and drops its samples, which may be of other settings."""
    remove_work(layout)
    shard = re.compile(rf"{re.escape(layout.name + layout.suffix)}-\d{{6,}}\.tar")
    old = [path for path in layout.folder.iterdir() if shard.fullmatch(path.name)]
    for path in (layout.manifest, layout.skipped, layout.plan, *old):
        path.unlink(missing_ok=True)
    for path in paths:
        path.replace(layout.folder / path.name)
    flush_folder(layout.folder)


def belongs(name: str, part: tuple[int, int] | None) -> bool:
    """Whether a file name at a store is that of a data set of this program, or of a part of it."""
    match = _OURS.fullmatch(name)
    if match is None or match["parts"] is None:
        return match is not None and part is None
    return part == (int(match["number"]), int(match["parts"]))


def check_place(layout: InputLayout, store: Store) -> dict[str, int]:
    """Refuses a place with another data set, before anything is written there.

    Files of this data set, or of this part, are accepted where a record of progress or a manifest
    says whose they are.

    Returns:
        Names and sizes in bytes of the files there.

    Raises:
        CavmaeError: see :func:`refuse_other_sets`; or the store cannot be read.
    """
    sizes = store.sizes()
    others = sizes.keys() - UploadRecord(layout, store.url).begun.keys()
    if not sizes.keys().isdisjoint({layout.progress, layout.manifest.name}):
        others = {name for name in others if not belongs(name, layout.part)}
    refuse_other_sets(store, others, layout.part)
    return sizes


def refuse_other_sets(store: Store, names: Iterable[str], part: tuple[int, int] | None) -> None:
    """Refuses a place with another data set, of which nothing may be overwritten.

    Args:
        store: the place.
        names: of its files that are not known to be those of this job.
        part: (I, N) if this job writes part I of N; (0, 0): one of them.

    Raises:
        CavmaeError: files of another data set are there.
    """
    names = sorted(names)
    joined = part is not None and any(name.startswith("manifest-part-") for name in names)
    for name in names:
        match = _OURS.fullmatch(name)
        if match is None:
            other = name.endswith(".tar") or (part is None and name in (ARRAY, SHARES))
        elif part is None or match["parts"] is None:
            other = not (joined and name in (NAME, "skipped.jsonl"))
        else:
            other = int(match["parts"]) != part[1] > 0 or int(match["number"]) == part[0]
        if other:
            raise foreign(store, name)


def foreign(store: Store, name: str) -> CavmaeError:
    return CavmaeError(
        f"{store.address(name)} was not uploaded from this --local-folder, nor by a run that can "
        "be taken over, so another data set is there: choose another --out, or give the "
        "--local-folder of its last run."
    )
