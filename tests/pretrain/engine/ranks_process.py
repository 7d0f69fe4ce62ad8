"""A training command that also writes the weights of its rank when it ends.

Usage: python ranks_process.py FOLDER MODULE WORD..., under a launcher. MODULE has a
``main(words)``; FOLDER gets ``RANK.safetensors`` of every rank.
"""

import importlib
import sys
from pathlib import Path

from safetensors.torch import save_file

from cavmae.common.cli import module_main
from cavmae.pretrain.engine.trainer import Trainer

folder, module = Path(sys.argv[1]), importlib.import_module(sys.argv[2])
train = Trainer.train


def train_and_write(loop: Trainer) -> bool:
    done = train(loop)
    weights = {k: v.detach().clone().contiguous() for k, v in loop.task.state_dict().items()}
    save_file(weights, folder / f"{loop._processes.rank}.safetensors")
    return done


Trainer.train = train_and_write  # type: ignore[method-assign]
del sys.argv[1:3]
module_main(module.main)
