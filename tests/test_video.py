"""Decoding, view sampling and packing: frame numbers, pixels and errors."""

import math
import weakref
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import footage
from slowfast_kernels import video
from slowfast_kernels.video import VideoError, VideoReader

# -- which frames --


def test_views_are_parsed():
    assert video.parse_views("10x3") == (10, 3)
    assert video.parse_views(" 2X1 ") == (2, 1)


@pytest.mark.parametrize("text", ["", "10", "x3", "0x1", "1x0", "3x2", "1x-1", "1.5x1", "ten x three"])
def test_other_views_are_refused(text):
    with pytest.raises(ValueError, match="views: expected"):
        video.parse_views(text)


def test_pyslowfast_clip_of_two_seconds():
    # 63 / 31 frames apart, truncated: every other frame until the last, which lands on 63.
    (first,) = video.clip_indices(300, 30.0, 32, 2, 1)
    assert first == [*range(0, 62, 2), 63]


def test_pyslowfast_starts_are_tenths_of_the_spare_frames():
    clips = video.clip_indices(300, 30.0, 32, 2, 10)
    assert [c[0] for c in clips] == [0, 23, 47, 70, 94, 118, 141, 165, 188, 212]  # 23.6 i
    assert clips[-1][-1] == 275  # 212.4 + 63: the last clip ends a tenth of the spare frames early


def test_pyslowfast_clip_length_follows_the_frame_rate():
    # At 25 frames/s a clip of 64 frames at 30 is 53.33 frames long: spacing 52.33 / 31.
    (first,) = video.clip_indices(250, 25.0, 32, 2, 1)
    assert first[:5] == [0, 1, 3, 5, 6] and first[-1] == 52
    (fast,) = video.clip_indices(600, 60.0, 32, 2, 1)
    assert fast[:3] == [0, 4, 8] and fast[-1] == 127


def test_offset_sampling_uses_whole_steps():
    clips = video.clip_indices(300, 30.0, 32, 2, 10, "pyslowfast-offset")
    assert [c[0] for c in clips] == [26 * i for i in range(10)]
    (middle,) = video.clip_indices(300, 30.0, 32, 2, 1, "pyslowfast-offset")
    assert middle[0] == 118


def test_mmaction2_spreads_clips_to_the_end():
    clips = video.clip_indices(300, 25.0, 32, 2, 10, "mmaction2")
    assert [c[0] for c in clips] == [0, 26, 52, 79, 105, 131, 157, 184, 210, 236]
    assert all(np.diff(c).tolist() == [2] * 31 for c in clips)
    (middle,) = video.clip_indices(300, 25.0, 32, 2, 1, "mmaction2")
    assert middle[0] == 118


def test_segments_span_the_video():
    # 48 frames in 8 parts of 5.875: edges 0 6 12 18 24 29 35 41 47 (halves to even, as numpy rounds).
    assert video.clip_indices(48, 12.0, 8, 2, 1, "segments") == [[3, 9, 15, 21, 26, 32, 38, 44]]
    assert video.clip_indices(2, 12.0, 4, 2, 1, "segments") == [[0, 0, 0, 1]]
    with pytest.raises(ValueError, match="expected 1 clip, which spans the video, got 2"):
        video.clip_indices(48, 12.0, 8, 2, 2, "segments")


def test_short_videos_repeat_the_last_frame_or_start_again():
    (held,) = video.clip_indices(10, 30.0, 8, 2, 1)
    assert held == [0, 2, 4, 6, 8, 9, 9, 9]
    (looped,) = video.clip_indices(10, 30.0, 8, 2, 1, "mmaction2")
    assert looped == [0, 2, 4, 6, 8, 0, 2, 4]


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match="expected one of pyslowfast.*got 'other'"):
        video.clip_indices(10, 30.0, 8, 2, 1, "other")


@settings(max_examples=80, deadline=None)
@given(
    total=st.integers(1, 5000),
    fps=st.floats(1, 240),
    frames=st.integers(1, 64),
    tau=st.integers(1, 16),
    clips=st.integers(1, 12),
    rule=st.sampled_from(video.RULES),
)
def test_every_frame_number_exists(total, fps, frames, tau, clips, rule):
    clips = 1 if rule == "segments" else clips
    plan = video.clip_indices(total, fps, frames, tau, clips, rule)
    assert [len(c) for c in plan] == [frames] * clips
    assert all(0 <= i < total for c in plan for i in c)
    starts = [c[0] for c in plan]
    assert starts == sorted(starts)
    if rule != "mmaction2":
        assert all(c == sorted(c) for c in plan)


# -- which pixels --


def test_scaled_sizes():
    assert video.scaled_size(272, 640, 256) == (256, 602)  # 602.35 rounded down
    assert video.scaled_size(640, 272, 256) == (602, 256)
    assert video.scaled_size(480, 857, 256) == (256, 457)  # 457.07
    assert video.scaled_size(361, 640, 256) == (256, 453)  # 453.85: rounded down here,
    assert video.scaled_size(361, 640, 256, "mmaction2") == (256, 454)  # to nearest there
    assert video.scaled_size(256, 999, 256) == (256, 999)


def test_crop_offsets():
    assert video.crop_offsets(256, 341, 256, 3) == [(0, 0), (0, 43), (0, 85)]
    assert video.crop_offsets(256, 341, 256, 3, "mmaction2") == [(0, 0), (0, 42), (0, 84)]
    assert video.crop_offsets(341, 256, 256, 3) == [(0, 0), (43, 0), (85, 0)]
    assert video.crop_offsets(256, 341, 224, 1) == [(16, 59)]
    assert video.crop_offsets(256, 256, 256, 3) == [(0, 0)] * 3
    with pytest.raises(ValueError, match="crop of 257 pixels does not fit in a picture of 300x256"):
        video.crop_offsets(256, 300, 257, 1)


def test_default_short_side_is_the_crop_for_three_crops():
    assert video.default_short_side(256, 3) == 256
    assert video.default_short_side(224, 1) == 256
    assert video.default_short_side(312, 1) == 312


# -- reading --


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("b.mp4", "libx264", "yuv420p", {"g": "12", "bf": "3"}),
        ("odd.mkv", "libx264", "yuv444p", {"g": "12"}),
        ("web.webm", "libvpx-vp9", "yuv420p", {"g": "30", "cpu-used": "8", "deadline": "realtime"}),
        ("old.avi", "mpeg4", "yuv420p", {"g": "12"}),
        ("b.avi", "mpeg4", "yuv420p", {"g": "12", "bf": "2"}),
        ("motion.mov", "mjpeg", "yuvj420p", {}),
        ("stream.ts", "libx264", "yuv420p", {"g": "12", "bf": "2"}),
        ("raw.h264", "libx264", "yuv420p", {"g": "12", "bf": "2"}),
    ],
)
def test_exactly_the_wanted_frames_come_out(tmp_path, name, codec, pixels, options):
    size = (161, 63) if pixels == "yuv444p" else (160, 64)
    path = footage.make_video(tmp_path / name, 90, size, codec=codec, pixels=pixels, options=options)
    reader = VideoReader(path)
    assert (reader.info.width, reader.info.height) == size
    assert reader.info.frames == 90
    wanted = [0, 1, 7, 30, 31, 64, 88, 89]
    got = [(i, footage.number_of(picture)) for i, picture in reader.read(wanted[::-1] + wanted)]
    assert got == [(i, i) for i in wanted]


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.avi"])
def test_jumps_by_key_frame_land_on_the_same_frames(tmp_path, name, monkeypatch):
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    options = {"g": "12"} if codec == "mpeg4" else {"g": "12", "bf": "3", "preset": "fast"}
    path = footage.make_video(tmp_path / name, 600, codec=codec, options=options)
    monkeypatch.setattr(video, "_SEEK_SECONDS", 0.5)
    decoded = []
    frames = VideoReader._frames

    def counted(self, container, stream):
        for frame in frames(self, container, stream):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(VideoReader, "_frames", counted)
    reader = VideoReader(path)
    wanted = [150, 151, 299, 300, 301, 302, 450, 599]
    assert [footage.number_of(p) for _, p in reader.read(wanted)] == wanted
    if not name.endswith("avi"):  # avi has no presentation times with this codec's packets to jump by
        assert len(decoded) < 300, "read from key frames, not through the whole file"


def test_variable_rate_is_read_by_time(tmp_path):
    # Two seconds at 10 frames/s, then two at 40: 100 frames in 4 seconds, 25 a second on average.
    times = [100 * i for i in range(20)] + [2000 + 25 * i for i in range(80)]
    path = footage.make_video(tmp_path / "vfr.mkv", 100, times=times)
    info = (reader := VideoReader(path)).info
    assert info.variable_rate and info.frames == 100 and info.fps == pytest.approx(25, rel=0.02)
    step = 1 / info.fps
    for position, picture in reader.read(range(0, 100, 9)):
        on_screen = max(i for i, t in enumerate(times) if t <= 1000 * position * step + 1)
        assert footage.number_of(picture) == on_screen


def test_constant_rate_is_not_taken_for_variable():
    info = VideoReader(footage.real("carphone_pristine.mp4")).info
    assert not info.variable_rate
    assert (info.frames, info.width, info.height) == (120, 176, 144)
    assert info.fps == pytest.approx(30000 / 1001)


def test_stored_rotation_is_applied(tmp_path):
    def corner(number, width, height):
        picture = np.full((height, width, 3), 20, dtype=np.uint8)
        picture[: height // 2, : width // 2] = 235
        return picture

    plain = footage.make_video(tmp_path / "plain.mp4", 10, (96, 64), draw=corner)
    turned = footage.rotate_clockwise(plain, tmp_path / "turned.mp4")
    reader = VideoReader(turned)
    assert (reader.info.width, reader.info.height) == (64, 96)
    ((_, picture),) = reader.read([3])
    assert picture.shape == (96, 64, 3)
    bright = picture.float().mean(-1) > 128
    # Top left in the file; a quarter turn clockwise brings it to the top right.
    assert bright[:40, 40:].all() and not bright[:40, :24].any() and not bright[56:].any()


@pytest.mark.parametrize("size", [(17, 33), (33, 17), (1, 1), (161, 91), (2, 300)])
def test_odd_sizes_work(tmp_path, size):
    path = footage.make_video(
        tmp_path / "odd.mkv", 8, size, pixels="yuv444p", draw=lambda n, w, h: np.full((h, w, 3), 99, np.uint8)
    )
    (view,) = video.sample_views(VideoReader(path), frames=4, tau=2, crop=24, views=(1, 1), short_side=24)
    assert view.frames.shape == (4, 24, 24, 3) and view.frames.dtype == torch.uint8
    assert (view.frames.int() - 99).abs().max() <= 3


def test_animated_gif_and_cover_art(tmp_path):
    path = footage.make_video(tmp_path / "a.gif", 12, codec="gif", pixels="rgb8", options={})
    assert [footage.number_of(p) for _, p in VideoReader(path).read([0, 5, 11])] == [0, 5, 11]


def test_a_picture_that_changes_its_size_half_way_is_scaled_to_the_first(tmp_path):
    # Two mpegts files one after the other are one stream.
    first = footage.make_video(tmp_path / "1.ts", 10, (160, 64), codec="mpeg2video", options={})
    second = footage.make_video(tmp_path / "2.ts", 10, (320, 128), codec="mpeg2video", options={})
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    shapes = {tuple(p.shape) for _, p in VideoReader(both).read(range(6))}
    assert shapes == {(64, 160, 3)}


def whole(path):
    with av.open(str(path)) as container:
        return torch.stack(
            [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
        )


@pytest.mark.parametrize("views", [(10, 3), (1, 1)])
def test_views_of_real_footage_equal_the_published_recipe(views):
    """Decode all, pick frames, normalise, resize and crop in float, as PySlowFast's test loader does."""
    path = footage.real("bikes.mp4")
    frames = whole(path)
    clips, crops = views
    crop = 256 if crops == 3 else 224
    seen = 0
    for view in video.sample_views(VideoReader(path), frames=8, tau=8, crop=crop, views=views):
        length = 8 * 8 * 25 / 30
        start = (250 - length) * view.clip / clips
        index = torch.linspace(start, start + length - 1, 8).clamp(0, 249).long()
        assert list(view.indices) == index.tolist()
        scale = F.interpolate(
            (frames[index].permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.225,
            size=(256, math.floor(640 / 272 * 256)),
            mode="bilinear",
            align_corners=False,
        )
        spare_y, spare_x = 256 - crop, scale.shape[-1] - crop
        top = math.ceil(spare_y / 2)
        left = {(3, 0): 0, (3, 2): spare_x}.get((crops, view.crop), math.ceil(spare_x / 2))
        expected = scale[:, :, top : top + crop, left : left + crop].permute(0, 2, 3, 1)
        ours = (view.frames.float() / 255 - 0.45) / 0.225
        assert (ours - expected).abs().max() <= 0.501 / 255 / 0.225  # half a level of 256
        seen += 1
    assert seen == clips * crops


def test_frames_are_dropped_when_no_clip_needs_them(tmp_path):
    path = footage.make_video(tmp_path / "a.mp4", 400)
    reader = VideoReader(path)
    alive: list[weakref.ref] = []
    most = 0
    read = reader.read

    def tracked(*args, **kwargs):
        nonlocal most
        for index, picture in read(*args, **kwargs):
            alive.append(weakref.ref(picture))
            most = max(most, sum(r() is not None for r in alive))
            yield index, picture

    reader.read = tracked  # type: ignore[method-assign]
    for view in video.sample_views(reader, frames=8, tau=4, crop=64, views=(10, 1), short_side=64):
        assert [footage.number_of(p) for p in view.frames][0] >= 0
    # Clips of 32 frames start 36.8 apart: no frame belongs to two of them.
    assert len(alive) == 80 and most <= 9


def test_overlapping_clips_decode_each_frame_once(tmp_path):
    path = footage.make_video(tmp_path / "a.mp4", 40)
    reader = VideoReader(path)
    count = 0

    def progress(n):
        nonlocal count
        count += n

    views = list(video.sample_views(reader, frames=8, tau=4, crop=64, views=(10, 3), progress=progress))
    assert len(views) == 30
    assert count == len({i for v in views for i in v.indices})
    assert count == video.distinct_frames(reader, frames=8, tau=4, clips=10)


def test_short_side_below_the_crop_is_refused(tmp_path):
    reader = VideoReader(footage.make_video(tmp_path / "a.mp4", 12))
    with pytest.raises(ValueError, match="at least the crop \\(64 pixels\\), got 32"):
        next(video.sample_views(reader, frames=4, tau=1, crop=64, short_side=32))


def test_positions_outside_the_video_are_refused(tmp_path):
    reader = VideoReader(footage.make_video(tmp_path / "a.mp4", 12))
    with pytest.raises(IndexError, match="expected 0 to 11"):
        list(reader.read([12]))
    assert list(reader.read([])) == []


# -- what cannot be used --


def refused(path, **kwargs):
    with pytest.raises(VideoError) as caught:
        VideoReader(path, **kwargs)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "expected" in message
    return message


def test_no_such_file(tmp_path):
    assert "no such file" in refused(tmp_path / "missing.mp4")


def test_a_folder(tmp_path):
    assert "is a directory" in refused(tmp_path)


@pytest.mark.parametrize("name", ["empty.mp4", "noise.mp4", "text.mp4", "text.txt", "program.py"])
def test_not_a_video(tmp_path, name):
    path = tmp_path / name
    content = {"e": b"", "n": np.random.default_rng(0).bytes(5000)}.get(name[0], b"hello, world\n" * 50)
    path.write_bytes(content)
    assert "empty" in refused(path) or "not a video" in refused(path)


def test_audio_only(tmp_path):
    assert "no video stream" in refused(footage.make_audio(tmp_path / "sound.mp4"))


def test_sound_beside_the_picture_is_ignored(tmp_path):
    path = footage.make_video(tmp_path / "both.mp4", 30, audio=True)
    assert [footage.number_of(p) for _, p in VideoReader(path).read([29])] == [29]


def test_zero_frames(tmp_path):
    assert "no frames" in refused(footage.make_empty(tmp_path / "zero.avi"))


def test_one_frame(tmp_path):
    assert "a single frame" in refused(footage.make_video(tmp_path / "one.mp4", 1))
    assert VideoReader(footage.make_video(tmp_path / "two.mp4", 2)).info.frames == 2


def test_a_photograph(tmp_path):
    path = footage.make_video(
        tmp_path / "photo.png", 1, codec="png", pixels="rgb24", options={}, container_format="image2"
    )
    assert "a single frame" in refused(path)


@pytest.mark.parametrize("kind", ["index at the end", "index first", "mkv", "avi", "raw footage"])
def test_truncated(tmp_path, kind):
    if kind == "raw footage":
        source = footage.real("bikes.mp4")
    else:
        name = {"mkv": "a.mkv", "avi": "a.avi"}.get(kind, "a.mp4")
        codec = "mpeg4" if kind == "avi" else "libx264"
        source = footage.make_video(tmp_path / name, 200, codec=codec, faststart=kind == "index first")
    half = tmp_path / ("half" + Path(source).suffix)
    data = Path(source).read_bytes()
    half.write_bytes(data[: int(len(data) * 0.6)])
    assert "truncated" in refused(half)


def test_the_rest_of_a_truncated_file_is_usable_on_request(tmp_path):
    source = footage.make_video(tmp_path / "a.mp4", 200, faststart=True)
    half = tmp_path / "half.mp4"
    data = source.read_bytes()
    half.write_bytes(data[: int(len(data) * 0.7)])
    reader = VideoReader(half, partial=True)
    assert 20 < reader.info.frames < 200
    assert [footage.number_of(p) for _, p in reader.read([0, 17])] == [0, 17]
    last = reader.info.frames - 1
    assert abs([footage.number_of(p) for _, p in reader.read([last])][0] - last) <= 12


def test_damage_in_the_middle_is_survived_and_counted(tmp_path):
    source = footage.make_video(tmp_path / "a.mp4", 120, options={"g": "12", "bf": "0"})
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        entry = stream.index_entries[50]
        data[entry.pos : entry.pos + entry.size] = bytes(entry.size)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    reader = VideoReader(broken)
    got = [footage.number_of(p) for _, p in reader.read([10, 49, 119])]
    assert got == [10, 49, 119]
    assert reader.damaged >= 1


def test_a_complete_file_with_longer_sound_is_not_called_truncated(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 160, 64, "yuv420p"
        sound = out.add_stream("aac", rate=16000)
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(footage.numbered(number, 160, 64), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        footage.silence(out, sound, 5.0)
    assert VideoReader(path).info.frames == 30
