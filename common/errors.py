"""Errors of the project: each message is one sentence with the file or field and a remedy."""


class CavmaeError(Exception):
    """A job that cannot continue. The command line prints the message and exits with 1."""


class UsageError(CavmaeError):
    """Invalid options or arguments. The command line exits with 2."""


class NonFiniteError(CavmaeError):
    """NaN or infinite values from a model."""


class ShardError(CavmaeError):
    """A shard or manifest that is missing, altered, damaged or of an unknown format."""


class SampleError(Exception):
    """A sample that cannot be used.

    Args:
        reason: key of the counts by reason, such as ``bad_json``.
        detail: description of the damage, for the quarantine file.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
