import av
import files
import numpy as np
import pytest
import torch
from full_disk import small_files
from PIL import Image

from API import UserError
from API.clips.cache import ClipCache
from API.clips.fit import centre
from API.clips.reading import find_clips
from API.clips.windows import ClipWindows
from API.clips.writing import write_clip
from API.deploy.predict import Predictor, Request, predict_clips, windows
from API.evaluation.metrics import Scores
from API.machine.device import Machine


@pytest.fixture
def predictor() -> Predictor:
    """A model that adds 0.1 to every frame, four at a time, of 16x24 grey pixels."""
    machine = Machine("cpu", 0, "fp32", 0, False)
    return Predictor(lambda past: past + 0.1, (4, 1, 16, 24), (4, 1, 16, 24), machine)


def run(request: Request, predictor: Predictor) -> str:
    """All that predict tells."""
    return "\n".join(predict_clips(request, predictor))


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
    assert np.allclose(future.reshape(5, -1).mean(1), expected, atol=1 if kind != "float" else 1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_not_rounded_to_256_levels(predictor, dtype):
    video = np.random.default_rng(1).random((4, 16, 24)).astype(dtype) * dtype(0.5)
    future = predictor(video)
    assert future.dtype == dtype
    assert np.allclose(future, video + 0.1, rtol=0, atol=max(1e-6, np.finfo(dtype).eps))
    colour = predictor(np.stack([video, video, video], -1))  # to grey and back
    assert np.allclose(colour, (video + 0.1)[..., None], rtol=0, atol=max(1e-6, np.finfo(dtype).eps))


def test_too_short_or_wrong_arrays_are_refused(predictor):
    for wrong in (
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8)),
        np.full((5, 8, 8), 7.0),
        np.full((5, 8, 8), np.nan),
        np.zeros((5, 8, 8), np.int64),
        np.zeros((5, 0, 8), np.uint8),
    ):
        with pytest.raises(ValueError, match="expected"):
            predictor(wrong)
    with pytest.raises(ValueError, match="frames: expected at least 1, found 0"):
        predictor(np.zeros((5, 8, 8)), frames=0)


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
    told = run(Request(source, tmp_path / output, 6), predictor)
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
    told = run(request, predictor)
    assert f"mse {0.01 * 16 * 24:.4g}" in told  # every pixel 0.1 off
    shown = np.load(tmp_path / "out.npy")
    assert shown.shape == (8, 16, 52, 1)
    assert (shown[:, :, :24] == 51).all()
    assert (shown[4:, :, 28:] == round(0.3 * 255)).all()


def test_pictures_side_by_side_have_captions_and_arrays_do_not(predictor, tmp_path):
    np.save(tmp_path / "in.npy", np.full((8, 96, 128), 51, np.uint8))
    for output in ("out.npy", "out"):
        run(Request(tmp_path / "in.npy", tmp_path / output, 6, start=[0], side_by_side=True), predictor)
    plain = np.load(tmp_path / "out.npy")[..., None].repeat(3, -1)
    shown = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "out").iterdir())])
    assert shown.shape == plain.shape == (10, 96, 260, 3)
    assert np.array_equal(shown[:, 18:], plain[:, 18:])
    for half in (shown[:, :18, :128], shown[:, :18, 132:]):
        assert (half.min((1, 2, 3)) == 0).all()  # letters
        assert len(np.unique(half.reshape(10, -1), axis=0)) == 10  # other ones in each


def test_many_windows_and_clips_get_a_file_each(predictor, tmp_path):
    for name in ("a", "b c"):
        np.save(tmp_path / f"{name}.npy", np.zeros((8, 16, 24), np.uint8))
    run(Request(tmp_path, tmp_path / "out.npy", 4, every=4), predictor)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a_00000.npy", "a_00004.npy", "b c_00000.npy", "b c_00004.npy",
    ]  # fmt: skip


@pytest.mark.parametrize("interpolation", [None, "bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(32, 96), (50, 31), (24, 33), (16, 24)])
def test_predict_scores_as_test_does_on_the_same_window(predictor, tmp_path, resize, interpolation, height, width):
    class Echo(torch.nn.Module):
        """Leaves [0, 1], and what it predicts last depends on what it predicted before."""

        def once(self, past):
            return 1.3 * past.flip(1) - 0.2

        def forward(self, past):
            first = self.once(past)
            return torch.cat([first, self.once(first)], 1)[:, :6]

    frames = files.pictures(10, height=height, width=width)
    np.save(tmp_path / "in.npy", np.stack(frames))
    cache = ClipCache(None, (3, 16, 24), resize, interpolation)
    data = ClipWindows(cache, find_clips(tmp_path), np.arange(-1, 10)[None].clip(0), 4)
    scores, (past, future) = Scores(), data.__getitems__([0])
    scores.update(Echo()(past), future)
    expected = scores.summary()["strict"]
    ours = Predictor(Echo().once, (4, 3, 16, 24), (6, 3, 16, 24), predictor.machine, resize, interpolation)
    told = run(Request(tmp_path / "in.npy", tmp_path / "out.npy", start=[0]), ours)
    assert told.endswith("".join(f"  {metric} {expected[metric]['mean']:.4g}" for metric in expected))
    shown = np.load(tmp_path / "out.npy")
    assert len(shown) == 6  # as many as in training
    assert shown.shape[1:] == frames[0].shape


@pytest.mark.parametrize("shape", [(16, 48), (32, 24), (64, 64)])
def test_a_cropping_model_predicts_the_middle_and_what_is_beside_it_is_grey(predictor, tmp_path, shape):
    frames = np.zeros((8, *shape), np.uint8)
    middle = centre(frames[0], 16, 24)
    frames[:] = 200
    np.save(tmp_path / "in.npy", frames)
    ours = Predictor(predictor.model, (4, 1, 16, 24), (4, 1, 16, 24), predictor.machine, "crop")
    run(Request(tmp_path / "in.npy", tmp_path / "out.npy", start=[0]), ours)
    shown = np.load(tmp_path / "out.npy")
    assert np.array_equal(shown, ours(frames))
    assert shown.shape == (4, *shape)
    assert (centre(shown[0], 16, 24) == round(200 + 25.5)).all()
    assert (shown[0] == 127).sum() == shown[0].size - middle.size


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((8, 16, 24), "THW"), ((8, 16, 24, 1), "THWC"), ((8, 16, 24, 3), "THWC"), ((8, 3, 16, 24), "TCHW")],
)
@pytest.mark.parametrize("side_by_side", [False, True])
def test_an_array_keeps_its_axes(predictor, tmp_path, shape, axes, side_by_side):
    np.save(tmp_path / "in.npy", np.zeros(shape, np.uint8))
    run(Request(tmp_path / "in.npy", tmp_path / "out.npy", side_by_side=side_by_side), predictor)
    sizes = dict(zip(axes, shape)) | {"T": 8 if side_by_side else 4}
    sizes |= {"W": 52} if side_by_side else {}
    assert np.load(tmp_path / "out.npy").shape == tuple(sizes[axis] for axis in axes)


def test_no_frame_is_read_after_the_last_one_that_is_needed():
    read = []
    stream = (read.append(k) or k for k in range(1000))
    assert [first for first, *_ in windows(stream, 3, 2, [4, 1], None)] == [1, 4]
    assert read[-1] == 8


def hard_link(source, place):
    place.hardlink_to(source)
    return place


def symbolic_link(source, place):
    place.symlink_to(source)
    return place


SPELLINGS = {
    "the same": lambda source, place: source,
    "through another folder": lambda source, place: source.parent / "sub/.." / source.name,
    "hard link": hard_link,
    "symbolic link": symbolic_link,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_input_is_never_written_to(predictor, tmp_path, monkeypatch, kind, spelling):
    (tmp_path / "sub").mkdir()
    if kind == "file":
        source = files.write_video(tmp_path / "in.mp4", files.pictures(8, height=16, width=24))
    else:
        source = files.write_images(tmp_path / "in", files.pictures(8, height=16, width=24), "{:05d}.png")
        if spelling == "hard link":  # of folders there are none: of a frame in another
            (tmp_path / "out").mkdir()
            (tmp_path / "out/00001.png").hardlink_to(source / "00001.png")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    output = tmp_path / ("out" + source.suffix)
    if not output.exists():
        output = SPELLINGS[spelling](source, output)
    monkeypatch.chdir(tmp_path)
    for place in (output, output.relative_to(tmp_path)):
        with pytest.raises(UserError, match=rf"--output {place}: .* belongs to the input; name another"):
            run(Request(source, place), predictor)
    assert {p: p.read_bytes() for p in before} == before


def test_a_folder_of_clips_is_not_the_folder_of_their_predictions(predictor, tmp_path):
    (tmp_path / "clips").mkdir()
    for name in "ab":
        np.save(tmp_path / f"clips/{name}.npy", np.zeros((8, 16, 24), np.uint8))
    for output in ("clips", "clips.npy", "clips/"):
        with pytest.raises(UserError, match="belongs to the input"):
            run(Request(tmp_path / "clips", tmp_path / output), predictor)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.npy", "b.npy", "clips"]


def test_every_clip_has_an_output_of_its_own(predictor, tmp_path):
    frames = files.pictures(8, height=16, width=24)
    root = tmp_path / "in"
    for name in ("clip.avi", "clip.mp4", "sub/x.mp4", "sub_x.mp4", "CLIP.mov"):
        files.write_video(root / name, frames)
    for name in ("2024.05.01", "2024.05.02", "clip"):
        files.write_images(root / name, frames)
    told = run(Request(root, tmp_path / "out.npy"), predictor).splitlines()
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert len(names) == len({name.casefold() for name in names}) == len(told) == 8
    assert {"2024.05.01_00004.npy", "2024.05.02_00004.npy", "clip.avi_00004.npy", "clip.mp4_00004.npy"} < set(names)
    run(Request(root, tmp_path / "pictures"), predictor)
    assert sorted(f"{p.name}.npy" for p in (tmp_path / "pictures").iterdir()) == names
    assert len(list((tmp_path / "pictures").glob("*/0000[0-3].png"))) == 32


def test_frames_of_a_longer_prediction_do_not_stay_and_other_files_are_not_touched(predictor, tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((8, 16, 24), np.uint8))
    for frames in (12, 3):
        run(Request(tmp_path / "in.npy", tmp_path / "out", frames), predictor)
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{k:05d}.png" for k in range(frames)]
    files.write_images(tmp_path / "mine", files.pictures(8), "{:05d}.png")
    (tmp_path / "out/notes.txt").write_text("mine")
    for name, found in {"mine": r"0000\d\.png", "out": r"notes\.txt"}.items():
        before = {p: p.read_bytes() for p in (tmp_path / name).iterdir()}
        with pytest.raises(UserError, match=rf"--output .*{name}: is a folder with other files, such as {found}"):
            run(Request(tmp_path / "in.npy", tmp_path / name, 2), predictor)
        assert {p: p.read_bytes() for p in (tmp_path / name).iterdir()} == before


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_folder_is_gone_through_to_its_end(predictor, tmp_path, skip_bad):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.mp4").write_text("hello")
    np.save(tmp_path / "in/c.npy", np.zeros((3, 16, 24), np.uint8))
    for name in "ad":
        np.save(tmp_path / f"in/{name}.npy", np.full((8, 16, 24), 51, np.uint8))
    request, told = Request(tmp_path / "in", tmp_path / "out.npy", start=[0], skip_bad=skip_bad), []
    if skip_bad:
        told += predict_clips(request, predictor)
    else:
        with pytest.raises(
            UserError, match=r"in: 2 of 4 clips were left out, see above; with --skip_bad that is no error"
        ):
            told.extend(predict_clips(request, predictor))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_00000.npy", "d_00000.npy"]
    assert len(told) == 4
    assert sum("  mse 3.84  " in line for line in told) == 2
    assert any(line.startswith(f"left out: {tmp_path}/in/b.mp4: ") for line in told)
    assert any("c.npy: has 3 frames, a prediction from --start 0 takes 4" in line for line in told)


def test_a_clip_of_other_channels_is_named(predictor, tmp_path):
    np.save(tmp_path / "two.npy", np.zeros((8, 16, 24, 2), np.uint8))
    with pytest.raises(UserError, match=r"/two\.npy: has 2 channels"):
        run(Request(tmp_path / "two.npy", tmp_path / "out.npy"), predictor)


def test_a_folder_in_which_nothing_can_be_predicted_is_a_mistake(predictor, tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.zeros((3, 16, 24), np.uint8))
    with pytest.raises(UserError, match=r"2 of 2 clips were left out, see above$"):
        run(Request(tmp_path, tmp_path / "out.npy", skip_bad=True), predictor)


def test_a_start_that_is_not_there_is_named_beside_those_that_are(predictor, tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((8, 16, 24), np.uint8))
    told = []
    with pytest.raises(UserError, match=r"in\.npy: has 8 frames, a prediction from --start 9 takes 4"):
        told.extend(predict_clips(Request(tmp_path / "in.npy", tmp_path / "out.npy", start=[0, 9]), predictor))
    assert len(told) == 1


def test_a_raw_video_is_taken_alone_as_in_a_folder(predictor, tmp_path):
    files.write_yuv(tmp_path / "in/clip_64x48.yuv", files.pictures(8))
    files.write_yuv(tmp_path / "clip.yuv", files.pictures(8))
    run(Request(tmp_path / "in", tmp_path / "folder.npy"), predictor)
    run(Request(tmp_path / "in/clip_64x48.yuv", tmp_path / "alone.npy"), predictor)
    run(Request(tmp_path / "clip.yuv", tmp_path / "given.npy", yuv_size=(64, 48)), predictor)
    expected = np.load(tmp_path / "folder.npy")
    assert expected.shape == (4, 48, 64, 3)
    for name in ("alone", "given"):
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), expected)
    with pytest.raises(UserError, match="--yuv_size"):
        run(Request(tmp_path / "clip.yuv", tmp_path / "out.npy"), predictor)


@pytest.mark.parametrize("output", ["out.mp4", "out.gif", "out.npy", "out"])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing_half_written(predictor, tmp_path, output):
    np.save(tmp_path / "in.npy", np.random.default_rng(0).integers(0, 256, (8, 160, 240, 3), dtype=np.uint8))
    said = rf"--output .*{output}: cannot be written \(File too large\)$"
    with small_files(1000), pytest.raises(UserError, match=said):
        run(Request(tmp_path / "in.npy", tmp_path / output), predictor)
    assert {p.name for p in tmp_path.iterdir()} <= {"in.npy", "out"}


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
            run(request, predictor)
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
