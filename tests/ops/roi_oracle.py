"""RoIAlign one sample at a time in Python numbers, from the published definition alone."""

import math

import numpy as np


def grid(low, high, scale, bins, ratio, aligned):
    """(start, bin size, samples per bin) of one axis of a box."""
    offset = 0.5 if aligned else 0.0
    start, end = low * scale - offset, high * scale - offset
    size = end - start if aligned else max(end - start, 1.0)
    return start, size / bins, ratio if ratio > 0 else max(math.ceil(size / bins), 0)


def interpolate(x, where):
    """Linear interpolation of an array at a position per axis; zero if it is off the map along one."""
    for p, extent in zip(where, x.shape, strict=True):
        if p < -1.0 or p > extent:
            return 0.0
    corners = [(0, 1.0, ())]  # (axis, weight, index) to be completed axis by axis
    total = 0.0
    while corners:
        axis, weight, index = corners.pop()
        if axis == x.ndim:
            total += weight * float(x[index])
            continue
        p, extent = max(where[axis], 0.0), x.shape[axis]
        low = int(p)
        if low >= extent - 1:
            low = high = extent - 1
            p = float(low)
        else:
            high = low + 1
        corners.append((axis + 1, weight * (1 - (p - low)), (*index, low)))
        corners.append((axis + 1, weight * (p - low), (*index, high)))
    return total


def align(x, box, bins, scales, ratio, aligned):
    """One box on one array, over all of its axes; ``box`` is ((low, high), ...)."""
    axes = [
        grid(low, high, s, b, ratio, aligned) for (low, high), s, b in zip(box, scales, bins, strict=True)
    ]
    out = np.zeros(bins)
    for bin_index in np.ndindex(*bins):
        samples = [
            [start + b * size + (i + 0.5) * size / n for i in range(n)]
            for b, (start, size, n) in zip(bin_index, axes, strict=True)
        ]
        count = max(math.prod(len(s) for s in samples), 1)
        total = sum(
            interpolate(x, [s[i] for s, i in zip(samples, at, strict=True)])
            for at in np.ndindex(*(len(s) for s in samples))
        )
        out[bin_index] = total / count
    return out


def roi_align3d_oracle(features, rois, output_size, spatial_scale, temporal_scale, ratio, aligned, mode):
    """features [N, C, T, H, W], rois as the op takes them: arrays in float64."""
    _, channels, frames = features.shape[:3]
    results = []
    for roi in rois:
        of_channels = []
        for c in range(channels):
            if mode == "volume":
                clip, x1, y1, x2, y2, t1, t2 = roi
                scales: tuple[float, ...] = (temporal_scale, spatial_scale, spatial_scale)
                box: tuple[tuple[float, float], ...] = ((t1, t2), (y1, y2), (x1, x2))
                of_channels.append(align(features[int(clip), c], box, output_size, scales, ratio, aligned))
                continue
            of_frames = []
            for t in range(frames):
                clip, x1, y1, x2, y2 = roi[t] if mode == "tube" else roi
                box, scales = ((y1, y2), (x1, x2)), (spatial_scale, spatial_scale)
                of_frames.append(align(features[int(clip), c, t], box, output_size, scales, ratio, aligned))
            of_channels.append(of_frames)
        results.append(of_channels)
    return np.array(results)
