"""Render examples/demo.mp4: ten seconds of moving shapes, so that the demo needs no download.

    python examples/render_clip.py [OUT.mp4]

A few discs and squares orbit, bounce and turn over a drifting pattern. Everything follows from the frame
number; the same encoder gives the same bytes.
"""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, FPS, SECONDS = 320, 256, 30, 10

# radius, colour, centre at time 0 (fractions of the picture), speed (picture widths per second), turns per
# second
SQUARES = (
    (34.0, (236, 94, 64), (0.20, 0.30), (0.23, 0.11), 0.35),
    (22.0, (250, 204, 92), (0.70, 0.60), (-0.17, 0.19), -0.60),
)
DISCS = (
    (28.0, (66, 165, 245), (0.50, 0.50), (0.31, -0.13)),
    (18.0, (102, 204, 140), (0.30, 0.75), (-0.21, -0.27)),
    (12.0, (240, 240, 245), (0.80, 0.20), (0.13, 0.37)),
)


def bounce(start: float, speed: float, time: float) -> float:
    """Position in [0, 1] of a point that moves at constant speed and turns round at both ends."""
    phase = (start + speed * time) % 2.0
    return 2.0 - phase if phase > 1.0 else phase


def blend(picture: np.ndarray, cover: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Paint ``colour`` where ``cover`` (float[H, W], 0..1) says so."""
    picture += cover[..., None] * (np.asarray(colour, dtype=np.float32) - picture)


def frame_at(number: int) -> np.ndarray:
    """uint8[HEIGHT, WIDTH, 3] RGB."""
    time = number / FPS
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    waves = np.sin((x + 26.0 * time) / 23.0) + np.sin((y - 18.0 * time) / 31.0)
    picture = np.stack([46 + 10 * waves, 56 + 12 * waves, 74 + 14 * waves], axis=-1).astype(np.float32)

    # A pendulum: slow at the ends, fast in the middle, seen by both pathways differently.
    angle = 0.9 * np.cos(2 * np.pi * 0.7 * time)
    length = 170.0
    s, c = np.sin(angle), np.cos(angle)
    px, py = WIDTH / 2 + length * s, length * c - 20
    along = (x - WIDTH / 2) * s + (y + 20) * c
    across = np.abs((x - WIDTH / 2) * c - (y + 20) * s)
    blend(picture, np.clip(2.0 - across, 0, 1) * (along < length), (200, 200, 205))
    blend(picture, np.clip(16.0 - np.hypot(x - px, y - py), 0, 1), (186, 104, 200))

    for radius, colour, (sx, sy), (vx, vy), turns in SQUARES:
        dx, dy = x - WIDTH * bounce(sx, vx, time), y - HEIGHT * bounce(sy, vy, time)
        c, s = np.cos(2 * np.pi * turns * time), np.sin(2 * np.pi * turns * time)
        edge = radius - np.maximum(np.abs(c * dx + s * dy), np.abs(c * dy - s * dx))
        blend(picture, np.clip(edge, 0, 1), colour)
    for radius, colour, (sx, sy), (vx, vy) in DISCS:
        away = np.hypot(x - WIDTH * bounce(sx, vx, time), y - HEIGHT * bounce(sy, vy, time))
        blend(picture, np.clip(radius - away, 0, 1), colour)
    return picture.round().clip(0, 255).astype(np.uint8)


def render(path: Path) -> None:
    """Write the clip as H.264 in mp4."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        # One thread: slices and look-ahead depend on the number of threads, and so would the bytes.
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "26", "preset": "slow", "g": "60"}
        for number in range(FPS * SECONDS):
            picture = av.VideoFrame.from_ndarray(frame_at(number), format="rgb24")
            picture.pts = number
            out.mux(stream.encode(picture))
        out.mux(stream.encode())


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("demo.mp4")
    render(target)
    print(f"wrote {target}: {target.stat().st_size / 1000:.0f} kB")
