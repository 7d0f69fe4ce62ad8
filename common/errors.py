"""Errors meant for a person: one sentence with the file or field, and what to do."""


class CavmaeError(Exception):
    """A job that cannot go on. The command line prints the message and exits with 1."""


class UsageError(CavmaeError):
    """A request that makes no sense as written. The command line exits with 2."""


class NonFiniteError(CavmaeError):
    """NaN or Inf from a model."""


class ShardError(CavmaeError):
    """A shard or manifest that is missing, altered, damaged or not one of ours."""


class SampleError(Exception):
    """A sample that cannot be used.

    Args:
        reason: one word for the counts, such as ``bad_json``.
        detail: what was found, for the quarantine file.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
