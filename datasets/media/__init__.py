"""Reading video and sound files: what is in them, frames by presentation time, waveforms."""

from cavmae.datasets.media.container import MediaError
from cavmae.datasets.media.frames import Decoder, open_decoder
from cavmae.datasets.media.probe import Probe, probe
from cavmae.datasets.media.sound import Sound

__all__ = ["Decoder", "MediaError", "Probe", "Sound", "open_decoder", "probe"]
