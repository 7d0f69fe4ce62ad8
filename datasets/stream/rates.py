"""Rates and sizes, without PyTorch: options are parsed and shards joined without it."""

SAMPLE_RATE = 16_000  # Hz
MEL_BINS = 128
# Grid of video frames: windows and parts of clips begin on it, so 4 fbank frames and 640 audio
# samples apart; recordings are played on it, and voices are active or not at its times.
VIDEO_RATE = 25
