"""Videos are read as players show them, and damage is what the container or the decoder says it is."""

import itertools
import os
from fractions import Fraction
from pathlib import Path

import av
import files
import numpy as np
import pytest

from API.clips.reading import BadClip, Clip, find_clips, frame_rate, read_frames

CASES = Path(__file__).parents[4] / "shared" / "cases"
FRAMES = files.pictures(24)


def read(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(Clip(path, path.name))))


def decoded(path: Path) -> np.ndarray:
    """What PyAV alone gives."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def error(a: np.ndarray, b: np.ndarray) -> float:
    return np.abs(a.astype(int) - b).mean()


def sound_until(path: Path) -> tuple[list[np.ndarray], str]:
    """(the frames before the damage, the message)."""
    frames = []
    with pytest.raises(BadClip) as caught:
        frames.extend(read_frames(Clip(path, path.name)))  # which keeps what came before
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return frames, message


KINDS = {
    "a.mp4": "libx264", "a.mkv": "libx264", "a.webm": "libvpx-vp9", "a.avi": "mpeg4", "a.mov": "mjpeg",
    "a.MTS": "libx264", "a.ts": "mpeg2video", "a.mpg": "mpeg1video", "a.wmv": "wmv2", "a.flv": "flv", "a.m4v": "mpeg4",
    "a.3gp": "mpeg4", "a.m2ts": "libx264", "a.vob": "mpeg2video",
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_ending_is_found_and_its_frames_are_those_that_pyav_decodes(name, tmp_path):
    path = files.write_video(tmp_path / name, FRAMES, KINDS[name])
    (clip,) = find_clips(tmp_path)
    frames = np.stack(list(read_frames(clip)))
    assert np.array_equal(frames, decoded(path))
    assert len(frames) == len(FRAMES)
    assert error(frames, np.stack(FRAMES)) < 25
    assert frame_rate(clip) == 25


def test_av1_is_read(tmp_path):
    if "libaom-av1" not in av.codecs_available and "libsvtav1" not in av.codecs_available:
        pytest.skip("this PyAV writes no AV1")
    codec = "libsvtav1" if "libsvtav1" in av.codecs_available else "libaom-av1"
    path = files.write_video(tmp_path / "a.mp4", FRAMES, codec)
    assert error(read(path), np.stack(FRAMES)) < 10


def fields(k: int) -> np.ndarray:
    """Frame k of an interlaced camera: even lines now, odd lines half a frame later; a bar that moves fast."""
    picture = np.zeros((576, 720, 3), np.uint8)
    for half in (0, 1):
        picture[half::2, 60 + 40 * k + 20 * half :][:, :50] = 230
    return picture


INTERLACED = {
    "tape.avi": ("dvvideo", "yuv420p", {}),
    "tv.mp4": ("libx264", "yuv420p", {"x264-params": "tff=1"}),
    "disc.mpg": ("mpeg2video", "yuv420p", {"flags": "+ildct+ilme"}),
}


@pytest.mark.parametrize("name", INTERLACED)
def test_interlaced_video_is_read_without_combs_and_frame_by_frame(name, tmp_path):
    codec, pixels, options = INTERLACED[name]
    path = files.write_video(tmp_path / name, [fields(k) for k in range(8)], codec, pixels, options=options)
    with av.open(str(path)) as video:
        if not next(video.decode(video=0)).interlaced_frame:
            pytest.skip("this PyAV does not mark it as interlaced")
    frames = read(path).astype(int)
    assert len(frames) == 8
    for k, frame in enumerate(frames):
        assert frame.shape[0] == 576
        combs = np.abs(frame[1:-1] - (frame[:-2] + frame[2:]) / 2).mean()
        woven = fields(k).astype(int)
        assert combs < 0.2 * np.abs(woven[1:-1] - (woven[:-2] + woven[2:]) / 2).mean()
        assert abs(frame.mean() - woven.mean()) < 3


def test_interlaced_video_that_stands_still_keeps_its_picture_and_its_colours(tmp_path):
    picture = files.picture(3, height=96, width=128)
    kinds = {"interlaced.mp4": {"x264-params": "tff=1", "crf": "2"}, "progressive.mp4": {"crf": "2"}}
    frames, progressive = (
        read(files.write_video(tmp_path / name, [picture] * 6, "libx264", "yuv444p", options=options, colorspace=1))
        for name, options in kinds.items()
    )
    assert len(frames) == 6
    assert error(frames, progressive) < 1


def test_the_matrix_that_a_file_names_gives_its_colours(tmp_path):
    colours = [np.full((48, 64, 3), (200, 40, 30), np.uint8)] * 3
    for matrix, levels in itertools.product((1, 5), (1, 2)):  # BT.709, BT.601; limited, full
        path = tmp_path / f"{matrix}{levels}.mp4"
        files.write_video(path, colours, "libx264", colorspace=matrix, color_range=levels)
        assert error(read(path), colours[0]) < 3


def test_pixels_that_are_not_square_become_square(tmp_path):
    path = files.write_video(
        tmp_path / "pal.mp4", files.pictures(3, height=72, width=90), sample_aspect_ratio=Fraction(64, 45)
    )
    frames = read(path)
    assert frames.shape == (3, 72, 128, 3)
    x = np.arange(128) + 0.5
    wide = 127 + 100 * np.sin(x * 90 / 128 / 9)  # the red of picture 0, stretched
    assert error(frames[0][..., 0], wide) < 10


@pytest.mark.parametrize("turn", [90, -90, 180])
def test_a_phone_held_upright_gives_upright_frames(turn, tmp_path):
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write it")
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(turn)  # degrees counterclockwise
        container.mux(stream.encode(av.VideoFrame.from_ndarray(FRAMES[0], format="rgb24")))
        container.mux(stream.encode())
    assert error(read(path)[0], np.rot90(FRAMES[0], turn // 90)) < 15


def test_what_is_transparent_is_black(tmp_path):
    picture = np.dstack([FRAMES[0], np.zeros((48, 64), np.uint8)])
    picture[8:24, 8:24] = 255
    path = files.write_video(tmp_path / "a.mov", [picture] * 3, "qtrle", "argb")
    frames = read(path)
    assert (frames[:, 8:24, 8:24] == 255).all()
    assert frames.sum() == 3 * 16 * 16 * 3 * 255


def test_the_fourth_byte_of_raw_avi_is_padding(tmp_path):
    picture = np.dstack([FRAMES[0], np.zeros((48, 64), np.uint8)])
    path = files.write_video(tmp_path / "a.avi", [picture] * 2, "rawvideo", "bgra")
    assert np.array_equal(read(path)[1], FRAMES[0])


def packets_of(path: Path) -> tuple:
    """(the container, its packets)."""
    container = av.open(str(path))
    return container, [packet for packet in container.demux(video=0) if packet.size]


def copied(source: Path, target: Path, shift: int = 0, keep=lambda k: True, **options) -> Path:
    """Packets from one file to another as they are, `shift` frames earlier, as lossless cutters do."""
    container, packets = packets_of(source)
    with container, av.open(str(target), "w", options=options) as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        step = Fraction(1, 25) / packets[0].time_base
        for k, packet in enumerate(packets):
            if keep(k):
                packet.pts -= int(shift * step)
                packet.dts -= int(shift * step)
                packet.stream = stream
                out.mux(packet)
    return target


def test_a_lossless_cut_begins_where_a_player_begins(tmp_path):
    source = files.write_video(tmp_path / "long.mp4", FRAMES, "libx264", options={"bf": "0", "g": "250"})
    cut = copied(source, tmp_path / "cut.mp4", shift=9, avoid_negative_ts="disabled")
    _, packets = packets_of(cut)
    assert len(packets) == len(FRAMES)  # all are there, an edit list hides the first
    frames = read(cut)
    assert np.array_equal(frames, read(source)[9:])


def test_dropped_frames_of_an_avi_are_no_damage(tmp_path, capsys):
    source = files.write_video(tmp_path / "all.avi", FRAMES)
    dropped = copied(source, tmp_path / "some.avi", keep=lambda k: k < 4 or k % 5 == 3)
    assert np.array_equal(read(dropped), read(source)[[0, 1, 2, 3, 8, 13, 18, 23]])
    assert "some.avi: its frame rate varies, frames last 40 to 200 ms" in capsys.readouterr().err


def test_a_variable_frame_rate_is_said_and_every_frame_is_taken_once(tmp_path, capsys):
    times = [40 * k if k < 10 else 400 + 200 * (k - 10) for k in range(len(FRAMES))]
    path = files.write_video(tmp_path / "screen.mkv", FRAMES, "libx264", times=times)
    assert len(read(path)) == len(FRAMES)
    assert "frames last 40 to 200 ms; its frames are taken one after another" in capsys.readouterr().err
    read(files.write_video(tmp_path / "a.mkv", FRAMES, "libx264", times=[round(k * 1000 / 24) for k in range(24)]))
    assert capsys.readouterr().err == ""  # rounding to milliseconds is none


@pytest.mark.parametrize("name", ["talk.mp4", "talk.mkv"])
def test_sound_that_goes_on_longer_than_the_picture_is_no_damage(name, tmp_path):
    source = files.write_video(tmp_path / "silent.mp4", FRAMES, "libx264")
    container, packets = packets_of(source)
    with container, av.open(str(tmp_path / name), "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        sound = out.add_stream("aac", rate=48000)
        for packet in packets:
            packet.stream = stream
            out.mux(packet)
        for k in range(250):  # 5 seconds
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 48000, 1024 * k
            out.mux(sound.encode(samples))
        out.mux(sound.encode())
    assert np.array_equal(read(tmp_path / name), read(source))


def test_a_broadcast_recorded_from_its_middle_begins_with_the_next_key_frame(tmp_path):
    source = files.write_video(tmp_path / "whole.ts", files.pictures(60), "mpeg2video", options={"g": "12", "bf": "2"})
    data = source.read_bytes()
    part = tmp_path / "part.ts"
    part.write_bytes(data[len(data) // 188 * 2 // 5 * 188 :])
    frames = read(part)
    assert 20 < len(frames) < 40
    assert np.array_equal(frames, read(source)[-len(frames) :])


DAMAGED = {
    "a.mp4": "libx264", "a.mkv": "libx264", "b.mp4": "mpeg4", "a.avi": "mjpeg", "b.avi": "mpeg4", "a.mpg": "mpeg2video",
    "a.wmv": "wmv2", "a.flv": "flv",
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_errors_inside_a_stream_are_told_with_the_number_of_frames_before(name, tmp_path):
    path = files.write_video(tmp_path / name, files.pictures(50, height=96, width=128), DAMAGED[name])
    data, sound = bytearray(path.read_bytes()), read(path)
    for at in np.random.default_rng(0).integers(len(data) // 2, len(data) * 9 // 10, 20):
        data[at] ^= 0xFF
    path.write_bytes(bytes(data))
    frames, message = sound_until(path)
    assert f"cut short or damaged after {len(frames)} frames" in message
    assert 5 < len(frames) < 45
    if DAMAGED[name] != "mjpeg":  # whose decoder takes most bytes for a picture
        assert np.array_equal(frames, sound[: len(frames)])


def test_a_checksum_that_does_not_hold_is_damage(tmp_path):
    options = {"level": "3", "slicecrc": "1", "slices": "4"}
    path = files.write_video(tmp_path / "a.mkv", FRAMES, "ffv1", options=options)
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 0xFF
    path.write_bytes(bytes(data))
    assert "CRC mismatch" in sound_until(path)[1]


@pytest.mark.parametrize("share", [0.4, 0.9])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi", "a.flv", "late.mp4"])
def test_a_file_that_ends_before_its_packets_do_is_damaged(name, share, tmp_path):
    codec = {"a.webm": "libvpx-vp9", "a.avi": "mjpeg"}.get(name, "libx264")
    path = files.write_video(tmp_path / "whole" / name, FRAMES, codec)
    if name == "a.mp4":  # with its index before its packets
        path = copied(path, tmp_path / name, movflags="+faststart")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    frames, _ = sound_until(path)
    assert len(frames) < len(FRAMES)


def test_a_name_that_is_not_utf8_is_read(tmp_path):
    path = files.write_video(tmp_path / "a.mp4", FRAMES[:3])
    path.rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")))
    (clip,) = find_clips(tmp_path)
    assert len(list(read_frames(clip))) == 3


def test_a_name_that_looks_like_an_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_video(Path("a.mp4"), FRAMES[:3]).rename("http:%03d.mp4")
    assert len(read(Path("http:%03d.mp4"))) == 3


def test_the_rest_is_not_decoded_when_no_more_is_wanted(tmp_path):
    path = files.write_video(tmp_path / "a.avi", files.pictures(40))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # damage that nobody gets to
    reader = read_frames(Clip(path, "a"))
    for _ in range(5):
        next(reader)
    reader.close()


@pytest.mark.parametrize(("name", "frames"), [("b0.mp4", 64), ("tree.avi", 68), ("vfr.mkv", 138), ("odd444.mp4", 75)])
def test_videos_of_users_that_play_are_read(name, frames):
    if not (CASES / name).exists():
        pytest.skip("the users' videos are not beside this checkout")
    ours = read(CASES / name)
    assert len(ours) == frames
    assert np.array_equal(ours, decoded(CASES / name))
