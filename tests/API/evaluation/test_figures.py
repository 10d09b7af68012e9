from itertools import pairwise

import numpy as np
import pytest
from full_disk import small_files
from matplotlib import colormaps
from PIL import Image, ImageDraw

from API import UserError
from API.clips.scale import Scale
from API.evaluation import figures

RED = [200, 9, 9]


@pytest.fixture(params=[1, 2, 3], ids=["grey", "two channels", "colour"])
def sequence(request) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    C = request.param
    return tuple(rng.random((n, C, 16, 24)).astype(np.float32) for n in (4, 6, 6))


def test_a_strip_is_a_picture_with_something_in_it(sequence, tmp_path):
    figures.strip(*sequence, tmp_path / "a.png", "title")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert picture.shape[1] > picture.shape[0] > 100
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize("draw", [figures.strip, figures.gif])
def test_a_picture_that_cannot_be_written_is_named_and_nothing_stays(draw, tmp_path):
    sequence = np.zeros((2, 1, 16, 24), np.float32)
    with small_files(100), pytest.raises(UserError, match=r"cannot write .*/a\.picture"):
        draw(sequence, sequence, sequence, tmp_path / "a.picture")
    assert list(tmp_path.iterdir()) == []


def test_a_gif_has_a_picture_for_every_frame_and_shows_the_truth_left(sequence, tmp_path):
    past, future, predicted = sequence
    figures.gif(past, future, predicted, tmp_path / "a.gif", enlarge=2)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 10
        animation.seek(7)
        shown = np.asarray(animation.convert("RGB"), dtype=float)
    truth = np.asarray(figures.as_image(future[3]), dtype=float).repeat(2, 0).repeat(2, 1)
    assert np.abs(shown[14 : 14 + 32, 2 : 2 + 48] - truth).mean() < 12  # GIFs have 256 colours


@pytest.mark.parametrize(("H", "W"), [(64, 64), (128, 128), (256, 448), (16, 24), (1080, 1920)])
def test_frames_in_a_strip_touch_and_keep_their_shape(H, W):
    frame = np.full((H, W, 3), RED, np.uint8)
    rows = [
        figures.Row("a", [frame] * 4),
        figures.Row("b", [None, frame]),
    ]
    picture = np.asarray(figures.tiles(rows))
    inside = (picture == RED).all(-1)
    top, left = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    columns = np.split(left, np.flatnonzero(np.diff(left) > 1) + 1)
    lines = np.split(top, np.flatnonzero(np.diff(top) > 1) + 1)
    assert (len(columns), len(lines)) == (4, 2)
    assert {b[0] - a[-1] for a, b in pairwise(columns)} == {5}  # four white pixels in between
    h, w = len(lines[0]), len(columns[0])
    assert w <= figures.LARGEST
    assert h / w == pytest.approx(H / W, abs=1 / w)
    assert not inside[lines[1][0] : lines[1][-1] + 1, columns[0][0] : columns[0][-1] + 1].any()  # the gap


def test_numbers_stand_above_a_row_where_they_change_and_are_not_covered(monkeypatch):
    drawn = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, text, *a, **k: drawn.append((text, xy)) or draw(self, xy, text, *a, **k),
    )
    frames = [np.zeros((64, 64, 3), np.uint8)] * 3
    picture = np.asarray(
        figures.tiles(
            [figures.Row("past", frames, -2), figures.Row("truth", frames), figures.Row("prediction", frames)], "title"
        )
    )
    assert [text for text, _ in drawn if text[-1].isdigit()] == ["-2", "-1", "0", "+1", "+2", "+3"]
    for text, (x, bottom) in drawn:
        if text[-1].isdigit():
            number = picture[round(bottom) - 13 : round(bottom), round(x) - 12 : round(x) + 12]
            assert (number == 0).any()
            assert (number == 255).all(-1).mean() > 0.5  # on white, no frame over it


def test_black_does_not_flatten_the_other_curves(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure))
    curves = {"model": [1.0, 2.0], "copy_last": [3.0, 4.0], "black": [1000.0, 1000.0]}
    figures.frame_curves({name: {"mse": {"per_frame": values}} for name, values in curves.items()}, tmp_path)
    (axis,) = kept[0].axes
    assert axis.get_ylim()[0] < 1
    assert 4 < axis.get_ylim()[1] < 5
    assert "black: 1e+03" in axis.texts[0].get_text()
    assert axis.get_legend() is None  # beside the curves, not over them
    assert [text.get_text() for text in kept[0].legends[0].get_texts()] == ["model", "copy last", "black"]


def test_curves_of_other_lengths_are_shown_whole(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure))
    curves = {name: {"mse": {"per_frame": [1.0] * frames}} for name, frames in {"a": 6, "b": 4}.items()}
    figures.frame_curves(curves, tmp_path)
    assert kept[0].axes[0].get_xlim()[1] > 6


@pytest.mark.parametrize("epochs", [1, 2, 7, 2000])
def test_epochs_are_whole_numbers(epochs, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure))
    record = dict(train_loss=1.0, lr=0.1, val_loss=2.0, val_mse=3.0, val_ssim=0.5)
    figures.training_curves([record | dict(epoch=e) for e in range(1, epochs + 1)], tmp_path)
    for axis in kept[0].axes:
        assert all(float(tick).is_integer() for tick in axis.get_xticks())


@pytest.mark.parametrize("width", [24, 64, 128, 448])
def test_captions_stay_within_their_picture(width):
    line = figures.caption("prediction +10", width, 18)
    assert line.shape[0] == 18
    assert 0 < line.shape[1] <= width
    assert (line < 128).any()
    assert (line > 128).any()


def test_images_keep_values():
    frame = np.array([[[0.0, 0.5, 1.0, 1.7, -0.3]]])
    assert figures.as_image(frame)[0, :, 0].tolist() == [0, 128, 255, 255, 0]
    assert figures.as_image(np.zeros((3, 2, 2))).shape == (2, 2, 3)


def test_curves_are_drawn_from_the_records(tmp_path):
    history = [dict(epoch=e, train_loss=10 / e, lr=0.1) for e in (1, 2, 3)]
    history[2] |= dict(val_loss=2.0, val_mse=3.0, val_ssim=0.5)
    figures.training_curves(history, tmp_path / "training.png")
    result = {"mse": {"per_frame": [1.0, 2.0]}, "ssim": {"per_frame": [0.9, 0.8]}}
    figures.frame_curves({"model": result, "copy_last": result}, tmp_path / "frames.png")
    assert all(Image.open(tmp_path / name).size[0] > 400 for name in ("training.png", "frames.png"))


# Values on a scale of colours ----------------------------------------------------------------------------------------


def test_a_scale_shows_one_channel_in_colours_that_rise_with_it():
    scale = Scale([0, 1], 2)
    frame = np.stack([np.array([[0.0, 0.5, 1.0, 1.7, -0.3]]), np.full((1, 5), 0.9)])
    expected = [colormaps["viridis"](float(v), bytes=True)[:3] for v in (0.0, 0.5, 1.0, 1.0, 0.0)]
    assert np.abs(figures.as_image(frame, scale)[0].astype(int) - np.array(expected, int)).max() <= 1


def test_bars_say_which_values_the_colours_stand_for(tmp_path, monkeypatch):
    drawn = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, xy, text, *a, **k: drawn.append(text) or draw(self, xy, text, *a, **k)
    )
    rng = np.random.default_rng(0)
    past, future = rng.random((4, 3, 16, 24)), rng.random((6, 1, 16, 24))
    predicted = future.copy()
    predicted[3, 0, 5, 5] += 0.1
    scale = Scale([0, 1, 200.5, 310, 0, 1], 3, [1], "t2m (K)")
    figures.strip(past, future, predicted, tmp_path / "a.png", "title", scale)
    assert {"200.5", "310", "t2m (K), channel 1", "0", "10.95", "|error|"} <= set(drawn)
    error = figures.rows_of(past, future, predicted, scale)[3].images[3].astype(int)
    assert error[5, 5].tolist() == pytest.approx(colormaps["cividis"](1.0, bytes=True)[:3], abs=1)
    assert error[0, 0].tolist() == pytest.approx(colormaps["cividis"](0.0, bytes=True)[:3], abs=1)
    figures.gif(past, future, predicted, tmp_path / "a.gif", scale=scale)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 10
        assert animation.size == ((24 * 3 + 4) * 3, 16 * 3 + 16 + 34)
