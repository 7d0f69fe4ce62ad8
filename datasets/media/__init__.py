"""Reading and writing of video and audio files: probing, frames by time stamp, waveforms."""

from cavmae.datasets.media.audio_reader import AudioReader
from cavmae.datasets.media.container import MediaError
from cavmae.datasets.media.frames import Decoder, open_decoder
from cavmae.datasets.media.probe import Probe, probe

__all__ = ["AudioReader", "Decoder", "MediaError", "Probe", "open_decoder", "probe"]
