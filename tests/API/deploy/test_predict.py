import av
import files
import numpy as np
import pytest
import torch
from PIL import Image

from API.clips.writing import write_clip
from API.deploy.predict import Predictor, Request, predict, windows
from API.machine.device import Machine


@pytest.fixture
def predictor() -> Predictor:
    """A model that adds 0.1 to every frame, four at a time, of 16x24 grey pixels."""
    machine = Machine("cpu", 0, "fp32", 0, False)
    return Predictor(lambda past: past + 0.1, (4, 1, 16, 24), (4, 1, 16, 24), machine)


def test_predictions_go_on_from_the_newest_for_any_number_of_frames(predictor):
    past = torch.rand(4, 1, 16, 24) * 0.2
    future = predictor.ahead(past, 10)
    assert future.shape == (10, 1, 16, 24)
    for k in range(10):
        assert torch.allclose(future[k], past[k % 4] + 0.1 * (k // 4 + 1), atol=1e-6)


def test_a_model_trained_for_fewer_frames_is_asked_for_no_more_at_once(predictor):
    short = Predictor(predictor.model, (4, 1, 16, 24), (3, 1, 16, 24), predictor.machine)
    past = torch.rand(4, 1, 16, 24) * 0.2
    first = past[:3] + 0.1
    second = torch.cat([past[3:], first])[:3] + 0.1
    assert torch.allclose(short.ahead(past, 6), torch.cat([first, second]), atol=1e-6)


@pytest.mark.parametrize("kind", ["grey", "colour", "float"])
def test_arrays_come_back_in_the_kind_and_size_that_they_came_in(predictor, kind):
    video = np.full((6, 32, 48), 51, np.uint8)  # 0.2
    if kind == "colour":
        video = video[..., None].repeat(3, -1)
    elif kind == "float":
        video = (video / 255).astype(np.float32)
    future = predictor(video, frames=5)
    assert future.dtype == video.dtype
    assert future.shape == (5, *video.shape[1:])
    expected = np.array([0.3] * 4 + [0.4]) * (255 if kind != "float" else 1)
    assert np.allclose(future.reshape(5, -1).mean(1), expected, atol=1 if kind != "float" else 0.005)


def test_too_short_or_wrong_arrays_are_refused(predictor):
    for wrong in (
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8)),
        np.full((5, 8, 8), 7.0),
        np.zeros((5, 8, 8), np.int64),
    ):
        with pytest.raises(ValueError, match="expected"):
            predictor(wrong)


def test_windows_of_a_stream_are_the_ones_asked_for():
    def names(*args):
        return [(first, "".join(past), "".join(truth)) for first, past, truth in windows("abcdefg", 3, 2, *args)]

    assert names(None, None) == [(4, "efg", "")]
    assert names(None, 2) == [(0, "abc", "de"), (2, "cde", "fg"), (4, "efg", "")]
    assert names([0, 3], None) == [(0, "abc", "de"), (3, "def", "g")]
    assert names([5], None) == []
    assert [w[0] for w in windows("abcdefg", 3, 9, None, 1)] == [0, 1, 2, 3, 4]


def test_a_long_stream_is_not_kept():
    alive = []

    class Frame:
        def __init__(self):
            alive.append(1)

        def __del__(self):
            alive.pop()

    most = 0
    for _ in windows((Frame() for _ in range(500)), 3, 2, None, 1):
        most = max(most, len(alive))
    assert most <= 7


@pytest.mark.parametrize("kind", ["mp4", "gif", "npy", "images"])
@pytest.mark.parametrize("output", ["out.mp4", "out.mkv", "out.gif", "out.npy", "out"])
def test_any_clip_goes_in_and_any_kind_comes_out(predictor, tmp_path, kind, output):
    frames = files.pictures(9, height=31, width=45)  # odd sizes
    if kind == "mp4":
        source = files.write_video(tmp_path / "in.mp4", [f[:30, :44] for f in frames])
    elif kind == "gif":
        source = files.write_gif(tmp_path / "in.gif", frames)
    elif kind == "images":
        source = files.write_images(tmp_path / "in", frames)
    else:
        source = tmp_path / "in.npy"
        np.save(source, np.stack(frames))
    told = predict(Request(source, tmp_path / output, 6), predictor)
    assert str(tmp_path / output) in told
    path = tmp_path / output
    height, width = (30, 44) if kind == "mp4" else (31, 45)
    if output.endswith(("mp4", "mkv")):
        with av.open(str(path)) as video:
            stream = video.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert stream.average_rate == 25
            pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
        assert pictures[0].shape == (height + height % 2, width + width % 2, 3)
    elif output.endswith("gif"):
        with Image.open(path) as animation:
            pictures = [None] * animation.n_frames
            assert animation.size == (width, height)
    elif output.endswith("npy"):
        pictures = np.load(path)
        assert pictures.shape == (6, height, width, 3)
    else:
        pictures = [np.asarray(Image.open(p)) for p in sorted(path.iterdir())]
        assert pictures[0].shape == (height, width, 3)
    assert len(pictures) == 6


def test_known_frames_are_scored_and_side_by_side_shows_both(predictor, tmp_path):
    np.save(tmp_path / "in.npy", np.full((10, 16, 24, 1), 51, np.uint8))
    request = Request(tmp_path / "in.npy", tmp_path / "out.npy", 4, start=[1], side_by_side=True)
    told = predict(request, predictor)
    assert f"mse {0.01 * 16 * 24:.4g}" in told  # every pixel 0.1 off
    shown = np.load(tmp_path / "out.npy")
    assert shown.shape == (8, 16, 52, 1)
    assert (shown[:, :, :24] == 51).all()
    assert (shown[4:, :, 28:] == round(0.3 * 255)).all()


def test_many_windows_and_clips_get_a_file_each(predictor, tmp_path):
    for name in ("a", "b c"):
        np.save(tmp_path / f"{name}.npy", np.zeros((8, 16, 24), np.uint8))
    predict(Request(tmp_path, tmp_path / "out.npy", 4, every=4), predictor)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a_00000.npy", "a_00004.npy", "b c_00000.npy", "b c_00004.npy",
    ]  # fmt: skip


def test_mistakes_are_named_in_one_line(predictor, tmp_path):
    np.save(tmp_path / "short.npy", np.zeros((3, 16, 24), np.uint8))
    np.save(tmp_path / "in.npy", np.zeros((8, 16, 24), np.uint8))
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out.npy"
    mistakes = {
        "short.npy: has 3 frames, a prediction takes 4": Request(tmp_path / "short.npy", out, 4),
        "in.npy: has 8 frames, a prediction from --start 6": Request(tmp_path / "in.npy", out, 4, start=[6]),
        "text.mp4: not a video": Request(tmp_path / "text.mp4", out, 4),
        "notes.txt: unknown kind": Request(tmp_path / "notes.txt", out, 4),
        "empty: no clips": Request(tmp_path / "empty", out, 4),
        "none.mp4: no such": Request(tmp_path / "none.mp4", out, 4),
        "out.xyz: unknown kind": Request(tmp_path / "in.npy", tmp_path / "out.xyz", 4),
        "cannot be written there": Request(tmp_path / "in.npy", tmp_path / "in.npy/out.gif", 4),
    }
    for words, request in mistakes.items():
        with pytest.raises(ValueError, match=words) as error:
            predict(request, predictor)
        assert "\n" not in str(error.value)
    assert not out.exists()


def test_movies_keep_their_content_and_rate(tmp_path):
    frames = np.stack(files.pictures(10))
    write_clip(tmp_path / "a.mp4", frames, 12.5)
    with av.open(str(tmp_path / "a.mp4")) as video:
        assert float(video.streams.video[0].average_rate) == 12.5
        back = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    assert np.abs(back.astype(int) - frames).mean() < 8
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
