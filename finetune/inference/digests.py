"""Digest of a model, by which results are matched with the weights that gave them."""

import hashlib

import torch
from torch import nn


def weights_digest(model: nn.Module, preprocessing: object) -> str:
    """SHA-256 of the weights of a model and of what goes with them, in hex digits.

    Args:
        model: whose state is hashed: names, types, shapes and bytes.
        preprocessing: dataclasses of what is not in the weights: the model's configuration (names
            of classes), the statistics of fbanks.
    """
    digest = hashlib.sha256(repr(preprocessing).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
