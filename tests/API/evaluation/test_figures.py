import numpy as np
import pytest
from PIL import Image

from API.evaluation import figures


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


def test_a_gif_has_a_picture_for_every_frame_and_shows_the_truth_left(sequence, tmp_path):
    past, future, predicted = sequence
    figures.gif(past, future, predicted, tmp_path / "a.gif", scale=2)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 10
        animation.seek(7)
        shown = np.asarray(animation.convert("RGB"), dtype=float)
    truth = np.asarray(figures.as_image(future[3]), dtype=float).repeat(2, 0).repeat(2, 1)
    assert np.abs(shown[14 : 14 + 32, 2 : 2 + 48] - truth).mean() < 12  # GIFs have 256 colours


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
