"""Records of a diagnosis: JSON objects of its parts, and the text that shows them."""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from cavmae.common.threads import cores
from cavmae.tools.diagnosis.packages import PROJECT, core_packages, core_problems, extras

GIB = 2**30


def package_record() -> dict[str, Any]:
    """Interpreter, packages, extras and the problems of the packages.

    It imports nothing that such problems would keep from loading.
    """
    packages = core_packages()
    problems = core_problems(packages)  # PyTorch is loaded before what an extra loads
    return {
        "version": importlib.metadata.version(PROJECT),
        "python": {
            "version": platform.python_version(),
            "path": sys.executable,
            "system": platform.platform(),
        },
        "packages": [package._asdict() for package in packages],
        "extras": [extra._asdict() for extra in extras()],
        "problems": problems,
    }


def machine_record() -> dict[str, Any]:
    """FFmpeg, devices and disks, of an installation whose packages can be loaded."""
    import torch

    from cavmae.tools.diagnosis import machine, media

    total, free = machine.memory_bytes()
    return {
        "ffmpeg": media.libraries(),
        "decoders": [state._asdict() for state in media.decoders()],
        "encoders": [state._asdict() for state in media.encoders()],
        "cores": cores(),
        "core_quota": machine.core_quota(),
        "memory_bytes": total,
        "free_memory_bytes": free,
        "cuda": torch.version.cuda,
        "gpus": [gpu._asdict() for gpu in machine.gpus()],
        "gpu_remark": machine.gpu_remark(),
        "disks": [disk._asdict() for disk in machine.disks()],
        "problems": media.problems(),
    }


def report(record: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the text of a record; parts that it lacks are left out."""
    python = record["python"]
    yield f"cavmae      {record['version']}"
    yield f"Python      {python['version']} ({python['path']}), {python['system']}"
    yield "Packages"
    for package in record["packages"]:
        mark = "" if package["usable"] else f"  WANTED {package['wanted']}"
        cuda = record.get("cuda") if package["name"] == "torch" else None
        build = f" (CUDA {cuda})" if cuda else ""
        yield f"  {package['name']:<16}{package['installed'] or 'missing'}{build}{mark}"
    if "ffmpeg" in record:
        yield from _machine_lines(record)
    yield "Extras"
    for extra in record["extras"]:
        state = "; ".join(extra["problems"])
        remedy = f"{state}: {extra['remedy']}" if state else "installed"
        yield f"  {extra['name']:<16}{extra['needed_for']}: {remedy}"
    yield "Problems" if record["problems"] else "No problems: the core works."
    yield from (f"  {problem}." for problem in record["problems"])


def _machine_lines(record: Mapping[str, Any]) -> Iterator[str]:
    ffmpeg = record["ffmpeg"]
    yield f"FFmpeg      {ffmpeg['ffmpeg']} in PyAV (libavcodec {ffmpeg['libavcodec']})"
    for kind in ("decoders", "encoders"):
        states = (
            f"{state['name']}{'' if state['available'] else ' MISSING (' + state['use'] + ')'}"
            for state in record[kind]
        )
        yield f"  {kind:<16}{', '.join(states)}"
    quota = record["core_quota"]
    limit = "" if quota is None else f", limited to the time of {quota:g}"
    yield f"CPU         {record['cores']} cores{limit}"
    yield (
        f"Memory      {record['memory_bytes'] / GIB:.1f} GiB, "
        f"{record['free_memory_bytes'] / GIB:.1f} GiB of it free"
    )
    gpus = [
        f"{gpu['name']}, {gpu['memory_bytes'] / GIB:.0f} GiB (compute capability "
        f"{gpu['capability']})"
        for gpu in record["gpus"]
    ]
    yield f"GPUs        {'; '.join(gpus) or record['gpu_remark'] or 'none'}"
    yield "Free disk"
    for disk in record["disks"]:
        yield f"  {disk['free_bytes'] / GIB:.1f} GiB in {disk['folder']} ({disk['use']})"
