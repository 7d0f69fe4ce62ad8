"""espeak-ng through its C interface: speech, and its phonemes to the millisecond.

The library is GPL-3, so it is an optional extra; the ``espeakng-loader`` package carries it and its
voices. Interface: ``speak_lib.h`` of espeak-ng 1.52.
"""

import ctypes
import dataclasses
from collections.abc import Sequence

import numpy as np

from cavmae.common.errors import CavmaeError

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS
_PHONEMES_IPA_NO_EXIT = 0x1 | 0x2 | 0x8000  # phoneme events, in IPA; do not end our process
_RATE, _PITCH, _RANGE = 1, 3, 4  # parameters
_PHONEME, _UTF8 = 7, 1
_SEED = 1


class _Id(ctypes.Union):
    _fields_ = [
        ("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8),
    ]  # fmt: skip


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", _Id),
    ]  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclasses.dataclass(frozen=True)
class EspeakVoice:
    """Parameters of an espeak-ng voice.

    Attributes:
        language: name in espeak-ng.
        variant: one of espeak-ng's voice variants.
        pitch, pitch_range: 0 to 99, espeak-ng's scale.
        rate: words a minute.
    """

    language: str
    variant: str
    pitch: int
    pitch_range: int
    rate: int


@dataclasses.dataclass(frozen=True)
class Phoneme:
    """Phoneme in IPA with its start in seconds; an empty one is a pause."""

    start: float
    ipa: str


def synthesize(voice: EspeakVoice, texts: Sequence[str]) -> tuple[np.ndarray, int, list[Phoneme]]:
    """Synthesize sentences one after the other.

    The same call gives the same samples whatever was spoken before: espeak-ng carries state from
    one utterance to the next even over its own re-initialisation (measured with 1.52), so the
    library is unloaded and loaded anew, which takes under a millisecond.

    Returns:
        float32 [samples], sample rate in Hz, phonemes.

    Raises:
        CavmaeError: espeak-ng is not installed, or does not know the voice.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise CavmaeError(
            "Synthetic voices need espeak-ng: pip install 'cavmae[talkers]' (it is GPL-3), or give "
            "recordings with --speech DIR."
        ) from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    chunks: list[bytes] = []
    phonemes: list[Phoneme] = []

    @_CALLBACK
    def receive(wave: object, count: int, events: object) -> int:
        if wave and count > 0:
            chunks.append(ctypes.string_at(wave, 2 * count))  # type: ignore[arg-type]
        number = 0
        while (event := events[number]).type:  # type: ignore[index]
            if event.type == _PHONEME:
                text = bytes(event.id.string).partition(b"\0")[0]
                phonemes.append(Phoneme(event.sample, str(text, "utf-8", "replace")))
            number += 1
        return 0

    folder = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, folder, _PHONEMES_IPA_NO_EXIT)
    try:
        if rate <= 0:
            raise CavmaeError(f"espeak-ng cannot read its voices in {folder!r}; reinstall it.")
        library.espeak_SetSynthCallback(receive)
        library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
        ctypes.CDLL(None).srand(_SEED)  # breath of Klatt voices comes from the C library's rand()
        name = f"{voice.language}+{voice.variant}"
        if library.espeak_SetVoiceByName(name.encode()) != 0:
            raise CavmaeError(f"espeak-ng has no voice {name!r}; update espeakng-loader.")
        for parameter, value in (
            (_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)
        ):  # fmt: skip
            library.espeak_SetParameter(parameter, value, 0)
        placed: list[Phoneme] = []
        before = 0
        for text in texts:
            data = text.encode()
            phonemes.clear()
            library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
            placed += [Phoneme((before + p.start) / rate, p.ipa) for p in phonemes]
            before = sum(map(len, chunks)) // 2
    finally:
        library.espeak_Terminate()
        _unload(library)
    waveform = np.frombuffer(b"".join(chunks), np.int16).astype(np.float32) / 32768
    return waveform, rate, placed


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes

    _ctypes.dlclose(library._handle)


# Natural variants: robots, whispers and the like are left out.
VARIANTS = (
    "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Henrique",
    "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Mr serious", "Nguyen", "Reed",
    "RicishayMax", "RicishayMax3", "Storm", "adam", "anika", "antonio", "aunty", "belinda",
    "benjamin", "boris", "david", "ed", "edward", "edward2", "f1", "f2", "f3", "f4", "f5",
    "grandma", "grandpa", "gustave", "ian", "iven2", "iven3", "iven4", "john", "kaukovalta",
    "linda", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "marcelo", "max", "michel", "miguel",
    "mike2", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby",
    "steph", "steph2", "steph3", "travis", "victor",
)  # fmt: skip
