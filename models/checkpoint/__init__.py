"""Checkpoints of PySlowFast, pytorchvideo, mmaction2 and this library: reading, writing, converting.

files.py       a file by its content -> tensors under its own keys     keys.py      whose keys they are
pyslowfast.py, pytorchvideo.py, mmaction2.py, caffe2.py: a library's names and configuration, and what it can express
templates.py   names that translate both ways                          rules.py, python_config.py, atomic.py
detect.py      shapes -> what they tell of the architecture            stored.py    what a configuration tells
resolve.py     both, and what the caller says -> a `ModelConfig`       assemble.py  it and the weights -> a network
load.py        load_checkpoint, save_checkpoint                        writing.py   convert, write
"""

from slowfast_kernels.models.checkpoint.errors import CheckpointError, MismatchError, Question, UndecidedError
from slowfast_kernels.models.checkpoint.load import CheckpointInfo, load_checkpoint, save_checkpoint
from slowfast_kernels.models.checkpoint.writing import Written, convert, write

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "MismatchError",
    "Question",
    "UndecidedError",
    "Written",
    "convert",
    "load_checkpoint",
    "save_checkpoint",
    "write",
]
