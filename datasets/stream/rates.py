"""Rates in Hz, without PyTorch: options are parsed without it."""

# Grid of video frames: windows and parts of clips begin on it, so 4 fbank frames and 640 audio
# samples apart; recordings are played on it, and voices are active or not at its times.
VIDEO_RATE = 25
