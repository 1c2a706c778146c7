"""From a video file to the clips a model eats: decoding (PyAV), view sampling, resizing, cropping, packing.

A *view* is one clip in time and one crop in space; the usual test protocol takes 10 x 3 of them and averages
the predictions (SlowFast, Feichtenhofer et al. 2019, section 4). Two sampling rules are in use and differ by
a frame here and a pixel there; both are implemented and named after the library whose checkpoints expect
them:

================  =====================================  ============================================
                  ``pyslowfast``                         ``mmaction2``
================  =====================================  ============================================
clip length       ``tau * T * fps / 30`` raw frames      ``tau * T`` raw frames, whatever the rate
clip start        ``delta * i / clips``                  ``round(delta * i / (clips - 1))``; one: middle
frame numbers     ``linspace(start, end, T)``, clamped   ``start + tau * k``, modulo the video's length
long side         rounded down                           rounded to nearest
crop offsets      middle rounded up                      ``0, 2s, s`` with ``s = (long - crop) // 2``
================  =====================================  ============================================

``pyslowfast-offset`` is the first rule with starts at ``i * floor(delta / (clips - 1))`` (its
``USE_OFFSET_SAMPLING``); ``segments`` is PySlowFast's for Something-Something: T equal parts of the whole
video, the middle frame of each. Frames are resized bilinearly with half-pixel centres and no antialiasing, as
all of these libraries do, and rounded to the nearest of 256 levels: PySlowFast resizes after the
normalisation, so its pixels differ from ours by up to half a level.
"""

import bisect
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slowfast_kernels._optional import needs

with needs("slowfast_kernels.video", extra="video"):
    import av

__all__ = [
    "RULES",
    "VideoError",
    "VideoInfo",
    "VideoReader",
    "View",
    "clip_indices",
    "clip_span",
    "crop_offsets",
    "default_short_side",
    "distinct_frames",
    "pack_view",
    "parse_views",
    "sample_views",
    "scaled_size",
    "short_clip_note",
]

RULES = ("pyslowfast", "pyslowfast-offset", "segments", "mmaction2")

# PySlowFast converts every video to this rate before it counts frames.
_NOMINAL_FPS = 30.0
# Short side for a single centre crop: the smallest scale its networks were trained at.
_JITTER_SHORT_SIDE = 256
# A jump shorter than this is decoded through: a seek throws away the decoder's threads and pictures.
_SEEK_SECONDS = 4.0
# FFmpeg renders plain text as terminal art, by file name.
_TEXT_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}


class VideoError(ValueError):
    """A video cannot be used. The message is one line, names the file and says what was expected."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its first video stream.

    ``width`` and ``height`` are those of the upright picture (rotation applied), in pixels; ``frames`` counts
    the positions on the uniform time line that clips are drawn from; ``fps`` is the average rate;
    ``duration`` is in seconds.
    """

    path: str
    codec: str
    width: int
    height: int
    frames: int
    fps: float
    duration: float
    variable_rate: bool


@dataclass(frozen=True)
class View:
    """One clip and one crop of it: ``frames`` is uint8[T, crop, crop, 3] RGB."""

    clip: int
    crop: int
    indices: tuple[int, ...]
    offset: tuple[int, int]
    frames: Tensor


def parse_views(text: str) -> tuple[int, int]:
    """``"10x3"`` -> (10 clips in time, 3 crops in space).

    Raises:
        ValueError: if the text is not of that form, a count is zero, or the crops are neither 1 nor 3.
    """
    match = re.fullmatch(r"\s*(\d+)\s*[xX*]\s*(\d+)\s*", text)
    if match is None:
        raise ValueError(f"views: expected CLIPSxCROPS such as 10x3 or 1x1, got {text!r}")
    clips, crops = int(match[1]), int(match[2])
    if clips < 1 or crops not in (1, 3):
        raise ValueError(f"views: expected at least 1 clip and 1 or 3 crops, got {text!r}")
    return clips, crops


def default_short_side(crop: int, crops: int) -> int:
    """Short side in pixels before cropping: the crop itself for three crops, else at least 256
    (PySlowFast)."""
    return crop if crops > 1 else max(crop, _JITTER_SHORT_SIDE)


def scaled_size(height: int, width: int, short_side: int, rule: str = "pyslowfast") -> tuple[int, int]:
    """(height, width) after scaling the shorter side to ``short_side`` and keeping the aspect ratio."""
    if min(height, width) == short_side:
        return height, width
    if rule == "mmaction2":
        factor = short_side / min(height, width)
        return int(height * factor + 0.5), int(width * factor + 0.5)
    if width < height:
        return math.floor(height / width * short_side), short_side
    return short_side, math.floor(width / height * short_side)


def crop_offsets(
    height: int, width: int, size: int, crops: int, rule: str = "pyslowfast"
) -> list[tuple[int, int]]:
    """(top, left) of each square crop: the centre, or both ends and the centre of the longer side.

    With three crops the order is left, centre, right (top, centre, bottom when the picture is taller).

    Raises:
        ValueError: if the crop does not fit in the picture.
    """
    if size > min(height, width):
        raise ValueError(f"crop of {size} pixels does not fit in a picture of {width}x{height}")
    spare_y, spare_x = height - size, width - size
    if rule == "mmaction2":
        middle = (spare_y // 2, spare_x // 2)
        far = (2 * middle[0], 2 * middle[1])
    else:
        middle = (math.ceil(spare_y / 2), math.ceil(spare_x / 2))
        far = (spare_y, spare_x)
    if crops == 1:
        return [middle]
    if height > width:
        return [(0, middle[1]), middle, (far[0], middle[1])]
    return [(middle[0], 0), middle, (middle[0], far[1])]


def clip_span(fps: float, frames: int, tau: int, rule: str = "pyslowfast") -> float:
    """Raw frames that a clip reaches over; arguments as in :func:`clip_indices`."""
    if rule == "segments":
        return frames
    if rule == "mmaction2":
        return frames * tau
    # At least one frame: at a very low rate a clip would run backwards.
    return max(tau * frames * fps / _NOMINAL_FPS, 1.0)


def short_clip_note(
    info: "VideoInfo", *, frames: int, tau: int, clips: int, rule: str = "pyslowfast"
) -> str | None:
    """A sentence on a video that is shorter than one clip; None where it is not."""
    span = math.ceil(clip_span(info.fps, frames, tau, rule))
    if info.frames >= span:
        return None
    how = "it starts again" if rule == "mmaction2" else "frames are repeated"
    same = f"; all {clips} clips are the same" if clips > 1 else ""
    return f"{info.frames} frames, fewer than the {span} that a clip reaches over: {how}{same}"


def clip_indices(
    total: int, fps: float, frames: int, tau: int, clips: int, rule: str = "pyslowfast"
) -> list[list[int]]:
    """Frame numbers of every clip.

    Args:
        total: frames in the video.
        fps: its rate, frames per second (used by the PySlowFast rules only).
        frames: frames the densest pathway takes (T).
        tau: raw frames between two of them, at 30 frames per second ("segments" does not use it).
        clips: how many clips to spread over the video.
        rule: one of :data:`RULES`.

    Returns:
        ``clips`` lists of ``frames`` numbers in ``[0, total)``. A video shorter than a clip repeats its last
        frame (PySlowFast) or starts again (mmaction2).
    """
    if rule not in RULES:
        raise ValueError(f"sampling rule: expected one of {', '.join(RULES)}, got {rule!r}")
    if rule == "segments":
        if clips != 1:
            raise ValueError(f"sampling rule segments: expected 1 clip, which spans the video, got {clips}")
        edges = [round(k * ((total - 1) / frames)) for k in range(frames + 1)]
        return [[(a + b) // 2 for a, b in pairwise(edges)]]
    if rule == "mmaction2":
        spare = max(total - int(clip_span(fps, frames, tau, rule)), 0)
        starts = [spare // 2] if clips == 1 else [round(i * (spare / (clips - 1))) for i in range(clips)]
        return [[(start + tau * k) % total for k in range(frames)] for start in starts]

    length = clip_span(fps, frames, tau, rule)
    delta = max(total - length, 0.0)
    result = []
    for i in range(clips):
        if rule == "pyslowfast":
            start = delta * i / clips
        else:
            start = math.floor(delta / 2) if clips == 1 else i * math.floor(delta / (clips - 1))
        # float32 like the original: the truncation below sees the same last bit.
        index = torch.linspace(start, start + length - 1, frames)
        result.append(torch.clamp(index, 0, total - 1).long().tolist())
    return result


class VideoReader:
    """Reads chosen frames of a video file, upright, as RGB, scaled to a short side.

    The constructor walks the packets once (nothing is decoded) to learn how many frames there are and when
    each is shown. :meth:`read` then decodes only up to the frames asked for, jumping over long gaps by key
    frame, and keeps nothing but the frame it hands out.

    A variable frame rate is resolved by time stamp: position ``i`` is the picture on screen at ``i / fps``
    seconds after the first, with ``fps`` the average rate. Rotation stored with the video is applied.

    Args:
        path: the file.
        partial: accept a file whose end is missing, and use the frames that are there.

    Raises:
        VideoError: the file is missing, is not a video, holds no frames or a single one, or is truncated.
    """

    def __init__(self, path: str | os.PathLike[str], *, partial: bool = False) -> None:
        self.path = os.fspath(path)
        self.damaged = 0  # packets the decoder refused so far
        file = Path(self.path)
        if not file.exists():
            raise VideoError(f"{self.path}: no such file (expected a video)")
        if file.is_dir():
            raise VideoError(f"{self.path}: is a directory (expected a video file)")
        if not file.is_file():
            raise VideoError(
                f"{self.path}: not a regular file (expected a video file that can be read twice)"
            )
        size = file.stat().st_size
        if size == 0:
            raise VideoError(f"{self.path}: the file is empty (expected a video)")
        with self._open() as container:
            stream = self._stream(container)
            self._scan(container, stream, size, partial)

    # -- opening --

    def _open(self) -> Any:
        try:
            container = av.open(self.path)
        except PermissionError as error:
            raise VideoError(f"{self.path}: permission denied (expected a readable video)") from error
        except av.error.InvalidDataError as error:
            if _lacks_index(self.path):
                raise VideoError(
                    f"{self.path}: an mp4 without its index, which is written last: the recording or the copy was cut "
                    "off (expected a complete file; --partial needs the index too. Copy it again, or rebuild the index "
                    "with a repair tool such as untrunc and a whole file of the same camera)"
                ) from error
            raise VideoError(
                f"{self.path}: not a video (expected a file FFmpeg can open, such as mp4, mkv, webm or avi)"
            ) from error
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise VideoError(f"{self.path}: cannot be opened as a video ({reason})") from error
        if container.format.name in _TEXT_FORMATS:
            container.close()
            raise VideoError(
                f"{self.path}: a text file, not a video (expected mp4, mkv, webm, avi or the like)"
            )
        return container

    def _stream(self, container: Any) -> Any:
        for stream in container.streams.video:
            if not _is_cover(stream):
                stream.thread_type = "AUTO"
                return stream
        kinds = sorted({stream.type for stream in container.streams}) or ["no"]
        raise VideoError(f"{self.path}: no video stream (expected one, found {', '.join(kinds)} only)")

    def _scan(self, container: Any, stream: Any, size: int, partial: bool) -> None:
        """Learn the frames' times from the packets, and refuse what cannot be used."""
        stamps: list[int] = []
        keys: list[int] = []
        packets = 0
        # pts may be missing altogether (raw elementary streams): frames are then found by counting.
        timed = True
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                packets += 1
                if packet.pts is None:
                    timed = False
                    continue
                stamps.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
        except av.error.FFmpegError as error:
            if not partial:
                raise VideoError(
                    f"{self.path}: damaged or truncated after {packets} frames ({_reason(error)}; "
                    "expected a complete video)"
                ) from error
        if packets == 0:
            if _missing_bytes(stream, size):
                raise VideoError(f"{self.path}: truncated, none of its frames are in the file")
            raise VideoError(f"{self.path}: the video stream holds no frames (expected at least 2)")

        expected = _expected_frames(container, stream, stamps if timed else None, packets, size)
        if expected > packets and not partial:
            raise VideoError(
                f"{self.path}: truncated, about {packets} of {expected} frames are in the file "
                "(expected a complete video; --partial uses what is there)"
            )

        first = self._first_frame()
        if packets == 1:
            raise VideoError(f"{self.path}: a single frame (expected a video of at least 2)")

        self._stamps = sorted(set(stamps)) if timed else None
        self._keys = sorted(keys) if timed else []
        self._start = self._stamps[0] if self._stamps else 0
        base = stream.time_base
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        if self._stamps is not None and len(self._stamps) > 1:
            gaps = np.diff(self._stamps)
            last = float(np.median(gaps))
            ticks = self._stamps[-1] - self._stamps[0] + last
            fps = float(rate) if rate and not _irregular(gaps) else len(self._stamps) / float(ticks * base)
            irregular = _irregular(gaps)
            frames = len(self._stamps) if not irregular else max(2, round(float(ticks * base) * fps))
            duration = float(ticks * base)
        else:
            fps = float(rate) if rate else _NOMINAL_FPS
            irregular, frames, duration = False, packets, packets / fps
        self._irregular = irregular
        self._ticks_per_frame = 1.0 / (fps * float(base)) if base else 1.0
        self._seek_ticks = _SEEK_SECONDS / float(base) if base else math.inf
        height, width = first
        self.info = VideoInfo(
            path=self.path,
            codec=stream.codec_context.name,
            width=width,
            height=height,
            frames=frames,
            fps=fps,
            duration=duration,
            variable_rate=irregular,
        )

    def _first_frame(self) -> tuple[int, int]:
        """Decode one frame: proof that the codec works, and the upright picture's (height, width)."""
        reason = "no frame could be decoded"
        with self._open() as container:
            stream = self._stream(container)
            try:
                for packet in container.demux(stream):
                    try:
                        for frame in packet.decode():
                            turned = _quarter_turns(frame) % 2
                            return (frame.width, frame.height) if turned else (frame.height, frame.width)
                    except av.error.InvalidDataError as error:
                        reason = _reason(error)
            except av.error.FFmpegError as error:
                reason = _reason(error)
        raise VideoError(f"{self.path}: cannot be decoded ({reason}; expected a playable video)")

    # -- reading --

    def read(
        self,
        indices: Sequence[int],
        short_side: int | None = None,
        rule: str = "pyslowfast",
        progress: Callable[[int], object] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield ``(index, uint8[H, W, 3])`` for each of ``indices``, in increasing order, once each.

        Args:
            indices: positions in ``[0, info.frames)``, in any order, repeats allowed.
            short_side: scale the shorter side to this many pixels; None keeps the size.
            rule: rounding of the longer side, see :func:`scaled_size`.
            progress: called with 1 for each frame handed out.

        A frame that cannot be decoded is replaced by the one shown before it. Raises :class:`VideoError` if
        no frame at all comes out.
        """
        wanted = sorted(set(indices))
        if not wanted:
            return
        if wanted[0] < 0 or wanted[-1] >= self.info.frames:
            raise IndexError(f"frame numbers: expected 0 to {self.info.frames - 1}, got {wanted}")
        target: tuple[int, int] | None = None
        for index, frame in self._pictures(wanted):
            picture = _upright_rgb(frame)
            if short_side is not None:
                if target is None:
                    target = scaled_size(picture.shape[0], picture.shape[1], short_side, rule)
                picture = _resize(picture, target)
            elif target is not None and tuple(picture.shape[:2]) != target:
                picture = _resize(picture, target)  # the stream changed its size half-way
            target = target or (picture.shape[0], picture.shape[1])
            if progress is not None:
                progress(1)
            yield index, picture

    def _pictures(self, wanted: list[int]) -> Iterator[tuple[int, Any]]:
        """Match decoded frames to positions: the latest frame not after each position's time."""
        times = [self._time(i) for i in wanted]
        shown: Any = None
        at = 0
        for time, frame in self._decode(times):
            # Frames come in order, so everything due before this one is answered by the previous one.
            while at < len(wanted) and times[at] < time:
                yield wanted[at], frame if shown is None else shown
                at += 1
            shown = frame
            if at < len(wanted) and times[at] == time:
                yield wanted[at], frame
                at += 1
            if at == len(wanted):
                return
        if shown is None:
            raise VideoError(f"{self.path}: no frame could be decoded (expected a playable video)")
        for index in wanted[at:]:
            yield index, shown

    def _time(self, index: int) -> float:
        """When position ``index`` is shown: a time stamp, or a plain count where the file has no stamps."""
        if self._stamps is None:
            return index
        if not self._irregular:
            return self._stamps[index]
        # Half a tick of slack: i / fps is rarely a whole number of ticks.
        due = self._stamps[0] + index * self._ticks_per_frame + 0.5
        return self._stamps[max(bisect.bisect_right(self._stamps, due) - 1, 0)]

    def _decode(self, times: list[float]) -> Iterator[tuple[float, Any]]:
        """Decoded frames with their times, skipping by key frame towards ``times`` where that pays."""
        with self._open() as container:
            stream = self._stream(container)
            count = 0
            pending = list(reversed(times))
            jump = self._seek(container, stream, self._jump(None, pending))
            restart = True
            while restart:
                restart, landed = False, jump is None
                for frame in self._frames(container, stream):
                    time = float(count) if self._stamps is None or frame.pts is None else float(frame.pts)
                    count += 1
                    if not landed and time > pending[-1]:
                        # The container's index is wrong; decoding from the start always works.
                        self._keys = []
                        jump, restart = self._seek(container, stream, self._start), True
                        break
                    landed = True
                    yield time, frame
                    while pending and pending[-1] <= time:
                        pending.pop()
                    if not pending:
                        return
                    ahead = self._jump(time, pending)
                    # A second jump to the same place means that the first one did not get there.
                    if ahead is not None and ahead != jump:
                        jump = self._seek(container, stream, ahead)
                        if jump is not None:
                            restart = True
                            break

    def _seek(self, container: Any, stream: Any, time: int | None) -> int | None:
        """Move to the key frame at or before ``time``; None if there is nothing to do or it cannot be
        done."""
        if time is None:
            return None
        try:
            container.seek(time, stream=stream, backward=True)
        except (av.error.FFmpegError, OSError):
            self._keys = []
            return None
        return time

    def _jump(self, now: float | None, pending: list[float]) -> int | None:
        """The key frame to seek to for the next wanted time, or None to keep decoding."""
        if not self._keys or self._stamps is None:
            return None
        k = bisect.bisect_right(self._keys, pending[-1]) - 1
        here = self._stamps[0] if now is None else now
        if k < 0 or self._keys[k] - here <= self._seek_ticks:
            return None
        return self._keys[k]

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        try:
            for packet in container.demux(stream):
                try:
                    yield from packet.decode()
                except av.error.InvalidDataError:
                    self.damaged += 1
        except av.error.FFmpegError:
            # The end of a file accepted as partial, or a damaged one: what came out so far is what there is.
            self.damaged += 1


def sample_views(
    reader: VideoReader,
    *,
    frames: int,
    tau: int,
    crop: int,
    views: tuple[int, int] = (10, 3),
    short_side: int | None = None,
    rule: str = "pyslowfast",
    progress: Callable[[int], object] | None = None,
) -> Iterator[View]:
    """Yield every view of a video, clip by clip, each clip decoded, resized and rounded once for its crops.

    Frames are dropped as soon as no later clip needs them, so memory holds the scaled frames of the clips
    that overlap, never the video.

    Args:
        reader: the open video.
        frames: frames per view (T of the densest pathway).
        tau: raw frames between them.
        crop: side of the square crop, pixels.
        views: (clips in time, crops in space).
        short_side: shorter side before cropping; None is :func:`default_short_side`.
        rule: one of :data:`RULES`.
        progress: called with 1 for each distinct frame decoded.

    Raises:
        ValueError: the crop does not fit.
    """
    clips, crops = views
    side = default_short_side(crop, crops) if short_side is None else short_side
    if side < crop:
        raise ValueError(f"short side: expected at least the crop ({crop} pixels), got {side}")
    plan = clip_indices(reader.info.frames, reader.info.fps, frames, tau, clips, rule)
    last_use = {index: i for i, indices in enumerate(plan) for index in indices}
    held: dict[int, Tensor] = {}
    source = reader.read(list(last_use), side, rule, progress)
    for i, indices in enumerate(plan):
        missing = set(indices) - held.keys()
        while missing:
            index, picture = next(source)
            held[index] = picture
            missing.discard(index)
        height, width = held[indices[0]].shape[:2]
        for j, (top, left) in enumerate(crop_offsets(height, width, crop, crops, rule)):
            pixels = torch.stack([held[k][top : top + crop, left : left + crop] for k in indices])
            yield View(i, j, tuple(indices), (top, left), pixels)
        for index in [k for k in held if last_use[k] <= i]:
            del held[index]


def distinct_frames(
    reader: VideoReader, *, frames: int, tau: int, clips: int, rule: str = "pyslowfast"
) -> int:
    """How many frames :func:`sample_views` will decode and keep: the length of its progress bar."""
    plan = clip_indices(reader.info.frames, reader.info.fps, frames, tau, clips, rule)
    return len({index for indices in plan for index in indices})


def pack_view(
    view: View, spec: Any, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> list[Tensor] | Tensor:
    """A view's pixels as the input of a model with this ``InputSpec``.

    Returns:
        ``[slow[1, 3, T/alpha, H, W], fast[1, C, T, H, W]]`` for a two-pathway model (``spec.call`` is
        ``"pathways"``), else the single clip; normalised, channels_last_3d, in ``dtype``.
    """
    from slowfast_kernels import ops

    slow_index: str | torch.Tensor | None = spec.slow_index if spec.slow_index != "linspace" else None
    if spec.call == "clip":
        slow_index = torch.empty(0, dtype=torch.int64)  # one pathway: no Slow clip is packed
    slow, fast = ops.pack_pathways(
        view.frames.unsqueeze(0).to(device),
        spec.alpha,
        mean=spec.mean,
        std=spec.std,
        dtype=dtype,
        slow_index=slow_index,
        fast_input=spec.fast_input,
        reverse_channels=spec.reverse_channels,
    )
    return [slow, fast] if spec.call == "pathways" else fast


# -- helpers --


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _lacks_index(path: str) -> bool:
    """Whether a file is an mp4 or mov whose "moov" box is missing: a list of boxes, each [size, type, ...]."""
    with open(path, "rb") as file:
        kind = file.read(8)[4:]
        if kind not in (b"ftyp", b"wide", b"mdat"):
            return False
        file.seek(0)
        while len(header := file.read(16)) >= 8:
            size, kind, large = int.from_bytes(header[:4]), header[4:8], int.from_bytes(header[8:16])
            if kind == b"moov":
                return False
            size = large if size == 1 else size
            if size < 8:  # 0: up to the end of the file
                break
            file.seek(size - len(header), 1)
    return True


def _is_cover(stream: Any) -> bool:
    """Album art travels as a video stream of one picture; it is no video."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _irregular(gaps: np.ndarray) -> bool:
    """Whether frame times stray from an even grid by more than half a frame (rounding of stamps is
    normal)."""
    steps = np.concatenate([[0], np.cumsum(gaps)])
    even = np.linspace(0, steps[-1], len(steps))
    return bool(np.abs(steps - even).max() > 0.5 * steps[-1] / max(len(gaps), 1))


def _missing_bytes(stream: Any, size: int) -> bool:
    """Whether the container's index points beyond the end of the file."""
    return any(entry.pos + entry.size > size for entry in stream.index_entries)


def _expected_frames(container: Any, stream: Any, stamps: list[int] | None, packets: int, size: int) -> int:
    """How many frames a complete file would have; ``packets`` where the container does not tell.

    mp4 and mov are judged by their index alone: an edit list may hide frames that the header counts.
    """
    if "mov" in container.format.name:
        return max(int(stream.frames), packets + 1) if _missing_bytes(stream, size) else packets
    if stream.frames > packets:
        return int(stream.frames)
    tag = stream.metadata.get("DURATION") if stream.metadata else None
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", tag.strip()) if tag else None
    if match and stamps and len(stamps) > 1 and stream.time_base:
        told = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
        found = float((max(stamps) - min(stamps)) * stream.time_base)
        rate = packets / found if found > 0 else 0.0
        # Two frames of slack: the tag may count to the end of the last frame, and from zero.
        start = max(float(min(stamps) * stream.time_base), 0.0)
        if (told - start - found) * rate > 3:
            return round((told - start) * rate)
    return packets


def _quarter_turns(frame: Any) -> int:
    """Counter-clockwise quarter turns that put the picture upright (phones store them beside the frames)."""
    return round((getattr(frame, "rotation", 0) or 0) / 90) % 4


def _upright_rgb(frame: Any) -> Tensor:
    pixels = frame.to_ndarray(format="rgb24")
    turns = _quarter_turns(frame)
    if turns:
        pixels = np.rot90(pixels, turns)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8[H, W, 3] -> uint8[h, w, 3], bilinear, half-pixel centres, no antialiasing, nearest level."""
    if tuple(picture.shape[:2]) == size:
        return picture
    planes = picture.permute(2, 0, 1).unsqueeze(0).float()
    scaled = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)[0].permute(1, 2, 0).contiguous()
