"""Images are read as viewers show them; a file that holds several frames is a clip."""

from pathlib import Path

import files
import numpy as np
import pytest
from PIL import Image

from API.clips.images import is_film, read_image
from API.clips.reading import BadClip, clips_at, find_clips, frame_rate, read_frames

GREY = np.tile(np.arange(20, 84, dtype=np.uint8), (48, 1))


def frames_of(folder: Path) -> np.ndarray:
    (clip,) = find_clips(folder)
    return np.stack(list(read_frames(clip)))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_span_0_to_65535(name, tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / name)
    assert np.array_equal(read_image(tmp_path / name), np.dstack([GREY] * 3))
    Image.fromarray(np.array([[0, 128, 129, 65535]], np.uint16)).save(tmp_path / name)
    assert read_image(tmp_path / name)[0, :, 0].tolist() == [0, 0, 1, 255]  # rounded, not cut off


def test_floats_span_0_to_1_and_other_ranges_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(GREY.astype(np.float32) / 255).save(path)
    assert np.array_equal(read_image(path), np.dstack([GREY] * 3))
    for wrong in (GREY.astype(np.float32), -GREY.astype(np.float32) / 255, np.full((8, 8), np.nan, np.float32)):
        Image.fromarray(wrong).save(path)
        with pytest.raises(BadClip, match=r"a\.tif: its floats must lie in \[0, 1\]"):
            read_image(path)
    Image.fromarray(GREY.astype(np.int32) * 1000).save(path)
    with pytest.raises(BadClip, match=r"a\.tif: its 32-bit integers have no known range"):
        read_image(path)


def test_every_exif_orientation_is_followed(tmp_path):
    picture = files.picture(3)
    turns = {
        1: picture, 2: picture[:, ::-1], 3: picture[::-1, ::-1], 4: picture[::-1], 5: picture.swapaxes(0, 1),
        6: np.rot90(picture, -1), 7: picture[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(picture),
    }  # fmt: skip
    for orientation, expected in turns.items():
        exif = Image.Exif()
        exif[0x112] = orientation
        for name in ("a.png", "a.webp", "a.jpg", "a.tif"):
            Image.fromarray(picture).save(tmp_path / name, exif=exif, quality=100, lossless=True)
            read = read_image(tmp_path / name)
            assert read.shape == expected.shape, (name, orientation)
            assert np.abs(read.astype(int) - expected).mean() < (6 if name == "a.jpg" else 0.1), (name, orientation)


def test_what_is_transparent_is_black_in_every_mode(tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (32, 32, 4), dtype=np.uint8)
    colours[..., 3] = 0
    colours[8:24, 8:24] = 255
    expected = np.zeros((32, 32, 3), np.uint8)
    expected[8:24, 8:24] = 255
    kinds = {"rgba.png": Image.fromarray(colours), "la.png": Image.fromarray(colours).convert("LA")}
    kinds |= {"rgba.webp": kinds["rgba.png"], "rgba.tif": kinds["rgba.png"]}
    for name, image in kinds.items():
        image.save(tmp_path / name, lossless=True)
        assert np.array_equal(read_image(tmp_path / name), expected), name
    palette = Image.fromarray((colours[..., 3] > 0).astype(np.uint8), "P")
    palette.putpalette([200, 100, 50, 255, 255, 255])
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.array_equal(read_image(tmp_path / "p.png"), expected)
    half = np.full((4, 4, 4), (200, 100, 50, 128), np.uint8)
    Image.fromarray(half).save(tmp_path / "half.png")
    assert read_image(tmp_path / "half.png")[0, 0].tolist() == [100, 50, 25]


def film(path: Path, frames: list[np.ndarray]) -> Path:
    first, *rest = [Image.fromarray(frame) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    more = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=rest, **({"duration": 100} if path.suffix != ".tif" else {}), **more)
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.apng", "a.webp", "a.gif"])
def test_every_frame_of_a_film_in_one_file_is_read(name, tmp_path):
    grey = [np.full((32, 32), 10 * k, np.uint8) for k in range(20)]
    film(tmp_path / name, grey)
    frames = frames_of(tmp_path)
    assert frames.shape == (20, 32, 32, 3)
    assert frames.mean((1, 2, 3)).tolist() == [10 * k for k in range(20)]
    (clip,) = clips_at(tmp_path / name)
    assert len(list(read_frames(clip))) == 20
    assert frame_rate(clip) == (25 if name == "a.tif" else 10)


@pytest.mark.parametrize("ending", [".tif", ".png", ".webp"])
def test_nine_films_are_nine_clips_and_not_one_of_their_first_frames(ending, tmp_path):
    for k in range(9):
        film(tmp_path / f"movie{k}{ending}", [np.full((32, 32), 10 * t + k, np.uint8) for t in range(12)])
    clips = find_clips(tmp_path)
    assert [clip.name for clip in clips] == [f"movie{k}{ending}" for k in range(9)]
    for k, clip in enumerate(clips):
        assert [frame.mean() for frame in read_frames(clip)] == [10 * t + k for t in range(12)]


def test_16_bit_pages_are_read_like_16_bit_images(tmp_path):
    film(tmp_path / "a.tif", [GREY.astype(np.uint16) * 257 + k for k in range(3)])
    assert np.array_equal(frames_of(tmp_path)[0], np.dstack([GREY] * 3))


def test_a_film_among_frames_is_named(tmp_path):
    files.write_images(tmp_path, files.pictures(3))
    film(tmp_path / "9999.png", files.pictures(4))
    (clip,) = find_clips(tmp_path)
    with pytest.raises(BadClip, match=r"9999\.png: holds 4 frames"):
        list(read_frames(clip))


def test_a_preview_as_a_second_page_makes_no_film(tmp_path):
    big, small = Image.fromarray(files.picture(0)), Image.fromarray(files.picture(0, 12, 16))
    for k in range(3):
        big.save(tmp_path / f"{k}.tif", save_all=True, append_images=[small])
    assert not is_film(tmp_path / "0.tif")
    assert frames_of(tmp_path).shape == (3, 48, 64, 3)


def test_a_frame_of_another_size_is_named(tmp_path):
    files.write_images(tmp_path, files.pictures(30))
    Image.new("RGB", (10, 10)).save(tmp_path / "0017.png")
    (clip,) = find_clips(tmp_path)
    with pytest.raises(BadClip, match=r"0017\.png: is 10x10, the frames before it are 64x48"):
        list(read_frames(clip))
