"""Reading and writing of video and audio files: probing, frames by time stamp, waveforms."""

from cavmae.datasets.media.container import MediaError
from cavmae.datasets.media.frames import Decoder, open_decoder
from cavmae.datasets.media.probe import Probe, probe
from cavmae.datasets.media.sound import Sound

__all__ = ["Decoder", "MediaError", "Probe", "Sound", "open_decoder", "probe"]
