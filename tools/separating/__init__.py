"""What `cavmae separate` is made of: a file's windows, what is found in them, files of results."""

from cavmae.tools.separating.separator import Result, Separator
from cavmae.tools.separating.settings import SeparateSettings
from cavmae.tools.separating.target import Target

__all__ = ["Result", "SeparateSettings", "Separator", "Target"]
