"""Installed packages: versions beside the ranges that the project asks for, and its extras."""

import importlib
import importlib.metadata
from collections.abc import Iterable
from typing import Any, NamedTuple

from packaging.requirements import Requirement

PROJECT = "cavmae"
# Extra: what needs it. Those for work on the project itself, tests and pages, are not here.
EXTRAS = {
    "http": "inputs from http:// and https://",
    "s3": "inputs and shards of s3://",
    "ray": "shard --executor ray",
    "talkers": "render-talkers, demo",
    "pesq": "PESQ in evaluate",
    "eval": "diarization error rates in evaluate",
    "bench": "OpenCV as a baseline of bench shard",
}
# Modules with compiled parts, which an installation may have without being able to load them.
# PyTorch comes before decord, which crashes otherwise.
CORE_MODULES = (
    "torch", "torchvision", "torchaudio", "numpy", "scipy", "av", "decord", "soundfile",
    "simplejpeg", "PIL.Image", "safetensors.torch", "webdataset", "accelerate", "timm",
)  # fmt: skip
EXTRA_MODULES = {"talkers": ("skia", "espeakng_loader")}
LIBRARY_ADVICE = {"skia": "; where libEGL or libGL is missing: apt install libegl1 libgl1"}


class Package(NamedTuple):
    """Direct dependency.

    Attributes:
        name: of the distribution.
        wanted: range of versions.
        installed: version; None: it is not installed.
        usable: whether the version is in the range.
    """

    name: str
    wanted: str
    installed: str | None
    usable: bool


class Extra(NamedTuple):
    """Optional dependencies of some commands.

    Attributes:
        name: as in ``cavmae[NAME]``.
        needed_for: commands and options.
        problems: phrase for each package that is missing or cannot be loaded.
        remedy: command that installs them.
    """

    name: str
    needed_for: str
    problems: list[str]
    remedy: str


def core_packages() -> list[Package]:
    """Direct dependencies, in the order of ``setup.cfg``."""
    return [_package(requirement) for requirement in _requirements(None)]


def extras() -> list[Extra]:
    """Extras, with what each lacks."""
    result = []
    for name, needed_for in EXTRAS.items():
        packages = [_package(requirement) for requirement in _requirements(name)]
        problems = [_problem(package) for package in packages if not package.usable]
        if not problems:
            problems = load_problems(EXTRA_MODULES.get(name, ()))
        result.append(Extra(name, needed_for, problems, f"pip install 'cavmae[{name}]'"))
    return result


def core_problems(packages: Iterable[Package]) -> list[str]:
    """Sentence for each direct dependency that is missing, too old, or cannot be loaded."""
    problems = [
        f"{_problem(package)}: pip install '{package.name}{package.wanted}'"
        for package in packages
        if not package.usable
    ]
    return problems + [
        f"{problem}: install it again, with the same version of torch, torchvision and torchaudio "
        "as `pip install cavmae` chooses"
        for problem in load_problems(CORE_MODULES)
    ]


def load_problems(modules: Iterable[str]) -> list[str]:
    """Phrase for each module that cannot be imported."""
    problems = []
    for module in modules:
        try:
            importlib.import_module(module)
        # A binary that does not fit its neighbours fails in any of these ways.
        except (ImportError, OSError, RuntimeError, AttributeError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            problems.append(f"{module} cannot be loaded ({reason}{LIBRARY_ADVICE.get(module, '')})")
    return problems


def _requirements(extra: str | None) -> list[Requirement]:
    """Requirements of the core or of an extra, for this machine."""
    everything = map(Requirement, importlib.metadata.requires(PROJECT) or ())
    return [
        requirement
        for requirement in everything
        if _is_wanted(requirement, extra) and not (extra and _is_wanted(requirement, None))
    ]


def _is_wanted(requirement: Requirement, extra: str | None) -> bool:
    marker: Any = requirement.marker
    return marker is None or bool(marker.evaluate({"extra": extra or ""}))


def _package(requirement: Requirement) -> Package:
    wanted = str(requirement.specifier)
    try:
        installed = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Package(requirement.name, wanted, None, False)
    usable = requirement.specifier.contains(installed, prereleases=True)
    return Package(requirement.name, wanted, installed, usable)


def _problem(package: Package) -> str:
    if package.installed is None:
        return f"{package.name} is not installed"
    return f"{package.name} {package.installed} is not {package.wanted}"
