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

from ..clips.reading import VIDEOS, Clip, find_clips, fit, images_in, read_frames
from ..clips.writing import check_output, write_clip
from ..evaluation.metrics import Scores
from ..machine.device import Machine


class Predictor:
    """Frames of any size -> the next ones, of the same size and kind.

    model: (B, T, C, H, W) -> (B, T, C, H, W) frames in [0, 1], on machine's device and in evaluation mode. Its first
    `reach` frames were trained; more are predicted from the newest T frames, again and again.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], in_shape: Sequence[int], out_shape: Sequence[int], machine: Machine
    ) -> None:
        self.model, self.machine = model, machine
        self.T, *self.shape = in_shape
        self.reach, self.C_out = min(self.T, out_shape[0]), out_shape[1]

    def __call__(self, video: np.ndarray, frames: int | None = None) -> np.ndarray:
        """video (F, H, W) or (F, H, W, C), uint8 or floats in [0, 1], F >= T: the last T count -> (frames, H, W[, C]).

        frames: how many, by default as many as one pass gives. Raises ValueError for too few frames or another kind.
        """
        video = np.asarray(video)
        if video.ndim not in (3, 4) or len(video) < self.T:
            raise ValueError(f"expected at least {self.T} frames (F, H, W) or (F, H, W, C), found {video.shape}")
        if video.dtype != np.uint8 and (video.dtype.kind != "f" or video.min() < 0 or video.max() > 1):
            raise ValueError("expected uint8, or floats in [0, 1]")
        past = video[-self.T :] if video.ndim == 4 else video[-self.T :, ..., None]
        if past.dtype != np.uint8:
            past = (past * 255).round().astype(np.uint8)
        future = self.back(self.ahead(self.prepare(past), frames or self.reach), past[0].shape)
        future = future if video.ndim == 4 else future[..., 0]
        return future if video.dtype == np.uint8 else (future / 255).astype(video.dtype)

    def prepare(self, past: Iterable[np.ndarray]) -> Tensor:
        """(h, w, c) uint8 frames -> (frames, C, H, W) in [0, 1], of the model's size and colours."""
        return torch.from_numpy(np.stack([fit(f, tuple(self.shape), "stretch", Path("frames")) for f in past])) / 255

    @torch.no_grad()
    def ahead(self, past: Tensor, frames: int) -> Tensor:
        """(T, C, H, W) -> (frames, C_out, H, W), float32 on the CPU."""
        if frames > self.reach and self.C_out != past.shape[1]:
            channels = f"{past.shape[1]} to {self.C_out} channels"
            raise ValueError(f"--frames {frames}: a model from {channels} cannot go on from its own {self.reach}")
        past, future = past[None].to(self.machine.device), []
        while sum(part.shape[1] for part in future) < frames:
            with self.machine.autocast():
                future.append(self.model(past)[:, : self.reach].float().clamp(0, 1))
            past = torch.cat([past, future[-1]], 1)[:, -self.T :] if self.C_out == past.shape[2] else past
        return torch.cat(future, 1)[0, :frames].cpu()

    @staticmethod
    def back(future: Tensor, shape: Sequence[int]) -> np.ndarray:
        """(frames, C, H, W) in [0, 1] -> (frames, h, w, c) uint8, of the size and colours that came in."""
        h, w, c = shape
        images = (future * 255).round().byte().permute(0, 2, 3, 1).numpy()
        out = []
        for image in images:
            image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR) if image.shape[:2] != (h, w) else image
            image = image if image.ndim == 3 else image[..., None]
            if image.shape[-1] == 3 and c == 1:
                image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
            out.append(image.repeat(c, -1) if image.shape[-1] == 1 else image)
        return np.stack(out)


def windows(
    frames: Iterable[np.ndarray], T: int, ahead: int, starts: Sequence[int] | None, every: int | None
) -> Iterator[tuple[int, list[np.ndarray], list[np.ndarray]]]:
    """A stream of frames -> (first frame, T past frames, what follows of the next `ahead`), T + ahead in memory.

    starts: the windows that begin there; else, with every, each every-th; else the last one.
    """
    buffer, first = deque(maxlen=T + ahead), 0
    wanted = (lambda k: k in starts) if starts is not None else (lambda k: every is not None and k % every == 0)

    def window() -> tuple[int, list[np.ndarray], list[np.ndarray]]:
        return first, list(buffer)[:T], list(buffer)[T:]

    for frame in frames:
        if len(buffer) == buffer.maxlen:
            if wanted(first):
                yield window()
            first += 1  # the oldest frame leaves
        buffer.append(frame)
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
    frames: int
    start: list[int] | None = None
    every: int | None = None
    side_by_side: bool = False


def clips_of(path: Path) -> list[Clip]:
    """The clips at a path: a file, a folder of images, or a folder of either. Raises ValueError where there is none."""
    if not path.exists():
        raise ValueError(f"--input {path}: no such file or folder")
    if path.is_dir():
        return [Clip(path, path.name, images)] if (images := images_in(path)) else find_clips(path)
    if path.suffix.lower() not in (*VIDEOS, ".gif", ".npy"):
        kinds = " ".join((*VIDEOS, ".gif", ".npy"))
        raise ValueError(f"--input {path}: unknown kind of file, expected {kinds} or a folder")
    return [Clip(path, path.name)]


def frame_rate(clip: Clip) -> float:
    """Frames a second; 25 where the clip does not say."""
    if clip.path.suffix.lower() in VIDEOS and not clip.images:
        video = cv2.VideoCapture(str(clip.path), cv2.CAP_FFMPEG)
        rate = video.get(cv2.CAP_PROP_FPS)
        video.release()
        return rate if 0 < rate <= 1000 else 25.0
    if clip.path.suffix.lower() == ".gif":
        from PIL import Image

        with Image.open(clip.path) as image:
            return 1000 / (image.info.get("duration") or 40)
    return 25.0


def predict_clips(request: Request, predictor: Predictor) -> str:
    """Predict for every clip and window asked for, write what comes out, and tell: a line a window.

    Where frames follow in the clip, the prediction is scored against them (protocol strict, on the model's scale).
    Raises ValueError for clips with too few frames and outputs that cannot be written.
    """
    check_output(Path(request.output))
    clips = clips_of(Path(request.input))
    several = len(clips) > 1 or (request.start is not None and len(request.start) > 1) or request.every is not None
    lines = []
    with tqdm(unit=" windows", disable=not sys.stderr.isatty(), leave=False) as bar:
        for clip in clips:
            rate, before = frame_rate(clip), len(lines)
            stream = windows(read_frames(clip), predictor.T, request.frames, request.start, request.every)
            for start, past, truth in stream:
                predicted = predictor.ahead(predictor.prepare(past), request.frames)
                frames = Predictor.back(predicted, past[0].shape)
                if request.side_by_side:
                    frames = beside(past, truth, frames)
                output = Path(request.output)
                if several:
                    name = clip.name.replace("/", "_").rsplit(".", 1)[0]
                    output = output.with_suffix("") / f"{name}_{start:05d}{output.suffix}"
                try:
                    write_clip(output, frames, rate)
                except OSError as error:
                    raise ValueError(f"--output {output}: cannot be written ({error.strerror or error})") from None
                lines.append(f"{clip.path} from frame {start}: {output}{score(predictor, predicted, truth)}")
                bar.update()
            if len(lines) == before:
                count = sum(1 for _ in read_frames(clip))
                wanted = f" from --start {request.start[0]}" if request.start else ""
                raise ValueError(f"{clip.path}: has {count} frames, a prediction{wanted} takes {predictor.T}")
    return "\n".join(lines)


def score(predictor: Predictor, predicted: Tensor, truth: Sequence[np.ndarray]) -> str:
    """The strict metrics of the predicted frames whose truth is known, in words; nothing where none is."""
    if not truth or predictor.C_out != predictor.shape[0]:
        return ""
    scores = Scores()
    scores.update(predicted[None, : len(truth)], predictor.prepare(truth)[None])
    return "".join(f"  {metric} {result['mean']:.4g}" for metric, result in scores.summary()["strict"].items())


def beside(past: Sequence[np.ndarray], truth: Sequence[np.ndarray], predicted: np.ndarray) -> np.ndarray:
    """Left the clip, grey where it has ended; right past and prediction: (T + frames, h, 2w + 4, c)."""
    grey = np.full_like(past[0], 127)
    left = [*past, *truth, *[grey] * (len(predicted) - len(truth))]
    gap = np.full_like(past[0][:, :4], 255)
    return np.stack([np.concatenate([a, gap, b], 1) for a, b in zip(left, [*past, *predicted])])
