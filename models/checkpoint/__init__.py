"""Checkpoints of PySlowFast, pytorchvideo, mmaction2 and this library: reading, writing, converting.

files.py    a file by its content -> tensors under its own keys      caffe2.py   Caffe2 pickles
keys.py     names of the same tensor in the four libraries
detect.py   shapes -> what they tell of the architecture             stored.py   configurations inside files
resolve.py  both, and what the caller says -> a `ModelConfig`
load.py     load_checkpoint, save_checkpoint                         writing.py  the other way
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
