"""Ground truth of a recording: whose pixel is whose, and each person's voice."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from cavmae.common.errors import CavmaeError
from cavmae.common.files import open_regular, write_atomically


@dataclasses.dataclass(frozen=True)
class FootageTruth:
    """Ground truth of a recording of P people.

    Attributes:
        people: uint8 [T, height, width] at 25 Hz, number of the person whose pixel it is, from 1;
            0: nobody.
        voices: float32 [P, samples] at 16 kHz, in the mixture; zeros for silent people.
    """

    people: np.ndarray
    voices: np.ndarray

    def save(self, path: Path) -> None:
        """Write the truth as a compressed NPZ file."""
        with write_atomically(path) as file:
            np.savez_compressed(file, people=self.people, voices=self.voices)

    @classmethod
    def load(cls, path: Path) -> "FootageTruth":
        """Read the truth of a recording.

        Raises:
            CavmaeError: the file is missing or damaged.
        """
        try:
            with open_regular(str(path)) as file, np.load(file, allow_pickle=False) as arrays:
                truth = cls(arrays["people"], arrays["voices"])
            truth._check()
        except FileNotFoundError as error:
            raise CavmaeError(
                f"There is no truth {path}: `cavmae make-footage` writes it."
            ) from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CavmaeError(
                f"{path} is damaged ({error}): remove it, and run `cavmae make-footage` again."
            ) from error
        return truth

    def _check(self) -> None:
        people, voices = self.people, self.voices
        if people.dtype != np.uint8 or people.ndim != 3 or not people.size:
            raise ValueError(f"people are {people.dtype} {list(people.shape)}")
        if voices.dtype != np.float32 or voices.ndim != 2 or not np.isfinite(voices).all():
            raise ValueError(f"voices are {voices.dtype} {list(voices.shape)}, or not finite")
        if int(people.max()) > len(voices):
            raise ValueError(f"a person {people.max()} of {len(voices)}")
