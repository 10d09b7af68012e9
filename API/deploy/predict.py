"""Prediction on any video, with or without targets: frames in, frames out, one window in memory at a time."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import UserError
from ..clips.clip import BadClip, Clip
from ..clips.fit import centre, fit
from ..clips.npy import MOST_CHANNELS
from ..clips.reading import clips_at, frame_rate, read_frames
from ..clips.writing import write_clip
from ..evaluation.figures import caption, number
from ..evaluation.metrics import Scores
from ..machine.device import Machine
from .outputs import Outputs

GREY = 127  # where nothing is predicted, and where a clip has ended


class Predictor:
    """Frames of any size -> the next ones, of the same size and kind.

    model: (B, T, C, H, W) -> (B, T_out, C_out, H, W), on machine's device and in evaluation mode. Where more frames are
    asked for, they are predicted from the newest T, again and again.
    resize, interpolation: how training made frames of other sizes fit, see clips/fit.py. With "crop" the model sees the
    middle of a frame only; what is beside it is grey in the predictions.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        machine: Machine,
        resize: str = "stretch",
        interpolation: str | None = None,
    ) -> None:
        self.model, self.machine, self.resize, self.interpolation = model, machine, resize, interpolation
        self.T, *self.shape = in_shape
        self.frames, self.C_out = out_shape[:2]

    def __call__(self, video: np.ndarray, frames: int | None = None) -> np.ndarray:
        """video (F, H, W) or (F, H, W, C), uint8 or floats in [0, 1], F >= T: the last T count -> (frames, H, W[, C]).

        frames: how many, by default as many as in training. Raises ValueError for too few frames or another kind.
        """
        video = np.asarray(video)
        if video.ndim not in (3, 4) or len(video) < self.T or 0 in video.shape:
            raise ValueError(f"expected at least {self.T} frames (F, H, W) or (F, H, W, C), found {video.shape}")
        if video.dtype != np.uint8 and (video.dtype.kind != "f" or not 0 <= video.min() <= video.max() <= 1):
            raise ValueError("expected uint8, or floats in [0, 1]")
        past = video[-self.T :] if video.ndim == 4 else video[-self.T :, ..., None]
        if past.dtype != np.uint8:
            past = past.astype(np.float32)  # what OpenCV resizes
        future = self.back(self.ahead(self.prepare(past), frames), past[0].shape, past.dtype)
        return (future if video.ndim == 4 else future[..., 0]).astype(video.dtype)

    def prepare(self, frames: Iterable[np.ndarray], where: Path = Path("frames")) -> Tensor:
        """(h, w, c) frames, uint8 or float32 in [0, 1] -> (frames, C, H, W) in [0, 1], of the model's size and colours,
        as in training. where: for messages."""
        images = np.stack([fit(f, tuple(self.shape), self.resize, where, self.interpolation) for f in frames])
        return torch.from_numpy(images) / (255 if images.dtype == np.uint8 else 1)

    @torch.no_grad()
    def ahead(self, past: Tensor, frames: int | None = None) -> Tensor:
        """(T, C, H, W) -> (frames, C_out, H, W), float32 on the CPU, as the model gives them: they may leave [0, 1]."""
        frames = self.frames if frames is None else frames
        if frames < 1:
            raise ValueError(f"frames: expected at least 1, found {frames}")
        if frames > self.frames and self.C_out != past.shape[1]:
            channels = f"{past.shape[1]} to {self.C_out} channels"
            raise UserError(f"--frames {frames}: a model from {channels} cannot go on from its own {self.frames}")
        past, future = past[None].to(self.machine.device), []
        while sum(part.shape[1] for part in future) < frames:
            with self.machine.autocast():
                future.append(self.model(past)[:, : self.frames].float())
            past = torch.cat([past, future[-1]], 1)[:, -self.T :] if self.C_out == past.shape[2] else past
        return torch.cat(future, 1)[0, :frames].cpu()

    def back(self, future: Tensor, shape: Sequence[int], dtype: np.typing.DTypeLike = np.uint8) -> np.ndarray:
        """(frames, C, H, W) -> (frames, h, w, c) of this size, uint8 or float32, clipped to [0, 1] before."""
        h, w, c = shape
        images, grey = future.clamp(0, 1).permute(0, 2, 3, 1).numpy(), GREY / 255
        if dtype == np.uint8:
            images, grey = (images * 255).round().astype(np.uint8), GREY
        out = np.full((len(images), h, w, c), grey, dtype)
        for frame, image in zip(out, images):
            part = centre(frame, *image.shape[:2]) if self.resize == "crop" else frame
            if image.shape[:2] != part.shape[:2]:
                image = cv2.resize(image, part.shape[1::-1], interpolation=cv2.INTER_LINEAR)
            image = image if image.ndim == 3 else image[..., None]
            if image.shape[-1] == 3 and c == 1:
                image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
            part[:] = image  # one channel goes into all
        return out


def windows(
    frames: Iterable[np.ndarray], T: int, ahead: int, starts: Sequence[int] | None, every: int | None
) -> Iterator[tuple[int, list[np.ndarray], list[np.ndarray]]]:
    """A stream of frames -> (first frame, T past frames, what follows of the next `ahead`), T + ahead in memory.

    starts: the windows that begin there, and no frame after the last of them is asked for; else, with every, each
    every-th; else the last one.
    """
    buffer, first = deque(maxlen=T + ahead), 0
    wanted = (lambda k: k in starts) if starts is not None else (lambda k: every is not None and k % every == 0)

    def window() -> tuple[int, list[np.ndarray], list[np.ndarray]]:
        return first, list(buffer)[:T], list(buffer)[T:]

    for frame in frames:
        buffer.append(frame)
        if len(buffer) == buffer.maxlen:
            if wanted(first):
                yield window()
            if starts is not None and first >= max(starts):
                return
            buffer.popleft()
            first += 1
    while len(buffer) >= T:  # the end of the stream: less and less follows
        if wanted(first) or (starts is None and every is None and len(buffer) == T):
            yield window()
        buffer.popleft()
        first += 1


@dataclass
class Request:
    """What is asked of `predict`: see the flags of the same names."""

    input: str | Path
    output: str | Path
    frames: int | None = None
    start: list[int] | None = None
    every: int | None = None
    side_by_side: bool = False
    skip_bad: bool = False
    yuv_size: Sequence[int] | None = None
    yuv_depth: int | None = None
    yuv_format: str | None = None


def predict_clips(request: Request, predictor: Predictor) -> Iterator[str]:
    """Predict for every clip and window asked for, write what comes out, and tell: a line a window.

    Where frames follow in the clip, the prediction is scored against them (protocol strict, on the model's scale).
    Raises UserError before the first prediction where --input or --output will not do, and after the last one where
    clips of a folder were bad or too short, unless request.skip_bad.
    """
    clips = clips_at(Path(request.input), request.yuv_size, request.yuv_depth, request.yuv_format)
    outputs = outputs_of(request, clips)
    yield from one_by_one(clips, request, lambda clip: predict_clip(clip, request, predictor, outputs))


def outputs_of(request: Request, clips: Sequence[Clip]) -> Outputs:
    """Where the predictions go. Raises UserError for a place that is not to be written to."""
    several = len(clips) > 1 or len(request.start or ()) > 1 or request.every is not None
    return Outputs(Path(request.output), several, Path(request.input), clips)


def one_by_one(clips: Sequence[Clip], request: Request, predict: Callable[[Clip], Iterator[str]]) -> Iterator[str]:
    """What predict tells of each clip, a line a window. Bad ones among several are left out and named; predict_clips
    says when that is a UserError at the end."""
    left_out = 0
    with tqdm(unit=" windows", disable=not sys.stderr.isatty(), leave=False) as bar:
        for clip in clips:
            try:
                for line in predict(clip):
                    bar.clear()
                    yield line
                    bar.update()
            except BadClip as error:
                if len(clips) == 1:
                    raise
                left_out += 1
                bar.clear()
                yield f"left out: {error}"
    if left_out == len(clips) or (left_out and not request.skip_bad):
        without = "" if left_out == len(clips) else "; with --skip_bad that is no error"
        raise UserError(f"--input {request.input}: {left_out} of {len(clips)} clips were left out, see above{without}")


def predict_clip(clip: Clip, request: Request, predictor: Predictor, outputs: Outputs) -> Iterator[str]:
    """Predict for every window of a clip that is asked for. Raises BadClip where it cannot be read, or is too short."""
    count, done, ahead, rate = 0, set(), request.frames or predictor.frames, frame_rate(clip)

    def stream() -> Iterator[np.ndarray]:
        nonlocal count
        for frame in read_frames(clip):
            count += 1
            yield frame

    for start, past, truth in windows(stream(), predictor.T, ahead, request.start, request.every):
        predicted = predictor.ahead(predictor.prepare(past, clip.path), ahead)
        frames, output = predictor.back(predicted, past[0].shape), outputs.path(clip, start)
        if request.side_by_side:
            frames = beside(past, truth, frames, captioned=output.suffix.lower() != ".npy")
        write_clip(output, like_source(frames, clip) if output.suffix.lower() == ".npy" else frames, rate)
        done.add(start)
        yield f"{clip.path} from frame {start}: {output}{score(predictor, predicted, truth)}"
    missing = [start for start in request.start or () if start not in done]
    if missing or not done:
        wanted = f" from --start {missing[0]}" if missing else ""
        raise BadClip(f"{clip.path}: has {count} frames, a prediction{wanted} takes {predictor.T}")


def like_source(frames: np.ndarray, clip: Clip) -> np.ndarray:
    """(N, h, w, c) -> the axes of the clip's array, where it is one: (N, h, w), (N, c, h, w) or (N, h, w, c)."""
    if clip.path.suffix.lower() != ".npy":
        return frames
    shape = np.load(clip.path, mmap_mode="r").shape
    if len(shape) == 3:
        return frames[..., 0]
    return frames.transpose(0, 3, 1, 2) if shape[1] <= MOST_CHANNELS else frames


def score(predictor: Predictor, predicted: Tensor, truth: Sequence[np.ndarray]) -> str:
    """The strict metrics of the predicted frames whose truth is known, in words; nothing where none is."""
    if not truth or predictor.C_out != predictor.shape[0]:
        return ""
    scores = Scores()
    scores.update(predicted[None, : len(truth)], predictor.prepare(truth)[None])
    return "".join(f"  {metric} {result['mean']:.4g}" for metric, result in scores.summary()["strict"].items())


def beside(
    past: Sequence[np.ndarray], truth: Sequence[np.ndarray], predicted: np.ndarray, captioned: bool
) -> np.ndarray:
    """Left the clip, grey where it has ended; right past and prediction: (T + frames, h, 2w + 4, c)."""
    left = [*past, *truth, *[np.full_like(past[0], GREY)] * (len(predicted) - len(truth))]
    gap = np.full_like(past[0][:, :4], 255)
    out = np.stack([np.concatenate([a, gap, b], 1) for a, b in zip(left, [*past, *predicted])])
    if captioned:
        w = past[0].shape[1]
        for k, frame in enumerate(out, 1 - len(past)):
            names = ("truth" if k <= len(truth) else "no truth", "prediction") if k > 0 else ("past", "past")
            write_over(frame[:, :w], f"{number(k)} {names[0]}")
            write_over(frame[:, -w:], f"{number(k)} {names[1]}")
    return out


def write_over(image: np.ndarray, text: str) -> None:
    """Put a caption into the upper left corner of (h, w, c) uint8, in place: black on white."""
    label = caption(text, image.shape[1], min(18, max(9, image.shape[0] // 4)))[: image.shape[0]]
    image[: label.shape[0], : label.shape[1]] = label[..., None]
