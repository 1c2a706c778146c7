"""Which memory of maps the kernels take as it lies."""

import pytest
import torch

from slowfast_kernels.ops._memory import channels_last, pixel_pitch, pixel_rows


def maps(n=2, c=12, t=3, h=4, w=5):
    return torch.randn(n, c, t, h, w).contiguous(memory_format=torch.channels_last_3d)


AS_IT_LIES = {
    "whole": (lambda: maps(), 12),
    "channel slice": (lambda: maps()[:, 3:7], 12),
    "one channel of several": (lambda: maps()[:, 4:5], 12),
    "channel slice of maps one column wide": (lambda: maps(w=1)[:, 3:7], 12),
    "channel slice of one pixel": (lambda: maps(1, 12, 1, 1, 1)[:, 3:7], 4),
    "frames of one clip": (lambda: maps()[1:2, :, 1:3], 12),
    "frames of one clip, channel slice": (lambda: maps()[1:2, 2:6, 1:], 12),
    "one frame of one clip": (lambda: maps()[:1, :, 1:2], 12),
}
COPIED = {
    "channels first": lambda: torch.randn(2, 12, 3, 4, 5),
    "frames of several clips": lambda: maps()[:, :, 1:],
    "every second frame": lambda: maps(t=4)[:, :, ::2],
    "rows left out": lambda: maps()[:, :, :, 1:],
    "one clip expanded": lambda: maps(n=1).expand(3, -1, -1, -1, -1),
    "one pixel expanded": lambda: maps(1, 12, 1, 1, 1).expand(2, -1, 3, 4, 5),
    "every second channel": lambda: maps()[:, ::2],
    "transposed": lambda: maps(h=5).transpose(3, 4),
}


@pytest.mark.parametrize("name", AS_IT_LIES)
def test_taken_as_it_lies(name):
    make, pitch = AS_IT_LIES[name]
    x = make()
    rows, found = pixel_rows(x)
    assert rows is x and found == pixel_pitch(x) == pitch
    # the kernels' reading: pixel i at i times the pitch, from the first element on
    n, c, t, h, w = x.shape
    read = torch.as_strided(x, (n * t * h * w, c), (pitch, 1))
    assert torch.equal(read, x.permute(0, 2, 3, 4, 1).reshape(-1, c))


@pytest.mark.parametrize("name", COPIED)
def test_copied(name):
    x = COPIED[name]()
    rows, pitch = pixel_rows(x)
    assert pixel_pitch(x) is None and pitch == x.shape[1]
    assert torch.equal(rows, x) and rows.stride() == channels_last(x).stride()
    assert rows.data_ptr() != x.data_ptr()
