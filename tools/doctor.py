"""`cavmae doctor`: versions, codecs, devices and disks, and what is missing for which command."""

import dataclasses
from collections.abc import Sequence

from cavmae.common.cli import module_main, output, parse_settings, parser
from cavmae.common.json_files import json_bytes


@dataclasses.dataclass(frozen=True)
class DoctorSettings:
    """Options of the diagnosis.

    Args:
        json: print a JSON object instead of text.
    """

    json: bool = False


def main(words: Sequence[str]) -> int:
    """Prints the diagnosis; returns 1 if the core of the project cannot work here."""
    settings, _ = parse_settings(
        parser("doctor", "Versions, codecs, devices, and what is missing for which command."),
        DoctorSettings,
        words,
    )
    from cavmae.tools.diagnosis.records import machine_record, package_record, report

    record = package_record()
    if not record["problems"]:
        record |= machine_record()
    if settings.json:
        output(json_bytes(record, indent=1).decode().rstrip("\n"))
    else:
        for line in report(record):
            output("%s", line)
    return 1 if record["problems"] else 0


if __name__ == "__main__":
    module_main(main)
