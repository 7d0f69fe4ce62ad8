"""Tokens of key frames, which windows that overlap have in common."""

import threading

import torch
from torch import Tensor

from cavmae.finetune.inference.predictor import WindowPredictor
from cavmae.finetune.inference.views import WindowView


class KeyTokens:
    """Encodes each key frame of a recording once, for windows in order, two of them at a time.

    Args:
        predictor: whose encoder is used.
    """

    def __init__(self, predictor: WindowPredictor):
        self._predictor = predictor
        self._known: dict[int, Tensor] = {}  # by frame, of the last window and those near before it
        self._lock = threading.Lock()

    def of(self, start: int, view: WindowView) -> Tensor | None:
        """Tokens [1, F, L, E] of a window; None: the encoder mixes the frames of each window.

        Args:
            start: first frame of the window.
            view: of the whole frames.
        """
        if self._predictor.config.encoder.mixes_frames:
            return None
        keys = [start + int(key) for key in self._predictor.keys]
        with self._lock:
            key_views = dict(zip(keys, view.key_views, strict=True))
            if fresh := [key for key in keys if key not in self._known]:
                tokens = self._predictor.encode_key_views([key_views[key] for key in fresh])
                self._known |= dict(zip(fresh, tokens, strict=True))
            oldest = start - self._predictor.config.frames  # a window before may be computed later
            self._known = {key: value for key, value in self._known.items() if key >= oldest}
            return torch.stack([self._known[key] for key in keys])[None]
