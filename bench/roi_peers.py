"""RoI head pooling as users compose it from torch: mean over time, RoIAlign per box, maximum over the bins.

Ways to write the RoIAlign, all of Mask R-CNN's definition (He et al. 2017) with bilinear samples
averaged in each bin, the number of samples from the size of the box (sampling_ratio 0):

torchvision its compiled operator, where it is installed: what users run.
vectorised  plain vectorised torch: the sample positions of all bins of one box, four gathers, a mean.
matmul      RoIAlign as two matrix products, one per axis: bilinear weights and the mean are separable.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from slowfast_kernels.bench import torchvision_ops
from slowfast_kernels.bench.harness import first_line
from slowfast_kernels.bench.peers import Unavailable


def _edges(rois: Tensor, scale: float, aligned: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left, top, width and height of the boxes in cells."""
    offset = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (rois[:, i] * scale - offset for i in range(1, 5))
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = width.clamp(min=1.0), height.clamp(min=1.0)
    return x1, y1, width, height


def _weights(at: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bilinear cells and weights of positions along an axis: low, high, weight of low, weight of high; both
    weights are 0 more than one cell outside."""
    inside = ((at >= -1.0) & (at <= size)).to(at.dtype)
    at = at.clamp(min=0.0)
    low = at.floor().clamp(max=size - 1)
    at = torch.where(low >= size - 1, low, at)
    part = at - low
    high = (low + 1).clamp(max=size - 1)
    return low.long(), high.long(), (1 - part) * inside, part * inside


def align_vectorised(maps: Tensor, rois: Tensor, bins: int, scale: float, aligned: bool) -> Tensor:
    """[N, C, H, W], [K, 5] -> [K, C, bins, bins]; see the module."""
    height, width = maps.shape[-2:]
    x1, y1, w, h = _edges(rois, scale, aligned)
    # Channels last: a gather then moves whole rows of channels.
    rows = maps.permute(0, 2, 3, 1).contiguous()
    found = []
    for k in range(rois.shape[0]):
        ny, nx = max(math.ceil(h[k] / bins), 1), max(math.ceil(w[k] / bins), 1)
        y = y1[k] + (torch.arange(bins * ny).to(rois) + 0.5) * (h[k] / (bins * ny))
        x = x1[k] + (torch.arange(bins * nx).to(rois) + 0.5) * (w[k] / (bins * nx))
        y_low, y_high, wy_low, wy_high = _weights(y, height)
        x_low, x_high, wx_low, wx_high = _weights(x, width)
        features = rows[int(rois[k, 0])]
        value = (
            features[y_low[:, None], x_low] * (wy_low[:, None] * wx_low)[..., None]
            + features[y_low[:, None], x_high] * (wy_low[:, None] * wx_high)[..., None]
            + features[y_high[:, None], x_low] * (wy_high[:, None] * wx_low)[..., None]
            + features[y_high[:, None], x_high] * (wy_high[:, None] * wx_high)[..., None]
        )
        value = value.view(bins, ny, bins, nx, -1).mean(dim=(1, 3))
        found.append(value.permute(2, 0, 1))
    return torch.stack(found) if found else maps.new_zeros(0, maps.shape[1], bins, bins)


def align_matmul(maps: Tensor, rois: Tensor, bins: int, scale: float, aligned: bool) -> Tensor:
    """[N, C, H, W], [K, 5] -> [K, C, bins, bins]; see the module."""
    height, width = maps.shape[-2:]
    x1, y1, w, h = _edges(rois, scale, aligned)

    def axis(start: Tensor, extent: Tensor, size: int) -> Tensor:
        per = (extent / bins).ceil().clamp(min=1)
        top = int(per.max()) if per.numel() else 1
        step = torch.arange(top, device=maps.device)
        side = (extent / bins)[:, None, None]
        at = start[:, None, None] + torch.arange(bins, device=maps.device)[None, :, None] * side
        at = at + (step + 0.5) * side / per[:, None, None]  # [K, bins, samples]
        low, high, w_low, w_high = _weights(at, size)
        live = (step < per[:, None])[:, None, :] / per[:, None, None]
        matrix = maps.new_zeros(*at.shape[:2], size)
        matrix.scatter_add_(2, low, w_low * live)
        return matrix.scatter_add_(2, high, w_high * live)

    y, x = axis(y1, h, height), axis(x1, w, width)
    return torch.einsum("kph,kchw,kqw->kcpq", y, maps[rois[:, 0].long()], x)


def align_torchvision(maps: Tensor, rois: Tensor, bins: int, scale: float, aligned: bool) -> Tensor:
    """[N, C, H, W], [K, 5] -> [K, C, bins, bins] on torchvision's operator, once `torchvision_ops.load` found it."""
    return torchvision_ops.roi_align(maps, rois, (bins, bins), scale, 0, aligned)


Align = Callable[[Tensor, Tensor, int, float, bool], Tensor]


def torchvision_on_cpu() -> Align:
    """The operator alone, also beside a CPU build of PyTorch; raises Unavailable."""
    torchvision_ops.load()
    return align_torchvision


def torchvision_with_gradients() -> Align:
    """torchvision's function, which has a backward; raises Unavailable."""
    try:
        from torchvision.ops import roi_align
    except Exception as error:  # not installed, or built for another torch: RuntimeError while importing
        raise Unavailable(f"torchvision: {first_line(error)}") from error

    def align(maps: Tensor, rois: Tensor, bins: int, scale: float, aligned: bool) -> Tensor:
        return roi_align(maps, rois.to(maps), bins, scale, sampling_ratio=0, aligned=aligned)

    return align


#: A GPU's ways to align.
GPU_ALIGNS: dict[str, Callable[[], Align]] = {
    "torchvision": torchvision_with_gradients,
    "torch_vectorised": lambda: align_vectorised,
    "torch_matmul": lambda: align_matmul,
}


def head_pool(
    align: Align,
    slow: Tensor,
    fast: Tensor,
    rois: Tensor,
    bins: int = 7,
    scale: float = 1 / 16,
    aligned: bool = True,
) -> Tensor:
    """[N, Cs, T, H, W], [N, Cf, alpha T, H, W], [K, 5] -> [K, Cs + Cf].

    The mean comes out in float32 at least, in which the rest is computed, as autocast has it: the maximum then picks
    the bin that exact arithmetic picks, and gradients can be compared.
    """
    wide = torch.promote_types(slow.dtype, torch.float32)
    means = [x.mean(dim=2, dtype=wide) for x in (slow, fast)]
    pooled = [align(x, rois, bins, scale, aligned).amax(dim=(-2, -1)) for x in means]
    return torch.cat(pooled, dim=1).to(slow.dtype)
