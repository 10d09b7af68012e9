"""Prediction on arrays of any kind of data: values in, values out, in the array's own units, axes and dtype."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace as Config

import numpy as np
import torch
from torch import Tensor

from .. import UserError
from ..clips.arrays import find_arrays, open_arrays
from ..clips.clip import BadClip, Clip
from ..clips.layout import GUESSES, Sequences
from ..clips.scale import Scale
from ..clips.writing import write_clip
from ..evaluation.colours import as_image, bars
from ..evaluation.metrics import Scores
from ..machine.device import Machine
from .outputs import Outputs
from .predict import Predictor, Request, beside, one_by_one, outputs_of

RATE, WIDTH = 5.0, 256  # of pictures: frames a second, and how wide small ones are enlarged to


class ArrayPredictor(Predictor):
    """Arrays with the axes of a layout -> the next frames, of the same axes, size and units.

    options: layout, variable, fill of the arrays, see Sequences; limits, targets: of the Scale. With "crop", what is
    beside the middle that the model sees is NaN in the predictions.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        machine: Machine,
        resize: str = "crop",
        interpolation: str | None = None,
        *,
        limits: Sequence[float],
        targets: Sequence[int] | None = None,
        variable: str | None = None,
        **options,
    ) -> None:
        super().__init__(model, in_shape, out_shape, machine, resize, interpolation)
        self.variable = variable
        self.scale = Scale(limits, self.shape[0], targets, variable or "value")
        self.options = dict(size=tuple(self.shape[1:]), resize=resize, **options)

    @classmethod
    def of(cls, config: Config) -> Callable[..., "ArrayPredictor"]:
        """The class, with the flags of a checkpoint. Raises UserError where they lack the scale."""
        flags = vars(config)
        if not flags.get("value_range"):
            raise UserError("--value_range: the checkpoint does not say it, give LOW HIGH")
        return partial(
            cls, limits=flags["value_range"], targets=flags.get("target_channels"), variable=flags.get("variable"),
            layout=flags.get("layout"), fill=flags.get("fill_missing"),
        )  # fmt: skip

    def __call__(self, video: np.ndarray, frames: int | None = None) -> np.ndarray:
        """An array in the layout, with or without its N, at least T frames long, of which the last T count -> the next
        `frames`, by default as many as in training, as floats. Raises UserError for arrays of another kind."""
        video = np.asarray(video)
        layout = self.options.get("layout") or GUESSES.get(video.ndim) or GUESSES.get(video.ndim + 1)
        if layout and "N" in layout.upper() and video.ndim == len(layout) - 1:
            layout = layout.upper().replace("N", "")
        array = self.check(Sequences(video, "array", **self.options | {"layout": layout}))
        return array.laid_out(self.predict(array, array.F - self.T, frames)[1])

    def open(self, path: Path) -> Sequences:
        """The sequences in a file."""
        array = self.check(open_arrays(path, self.variable, **self.options))
        self.scale.name = array.name or self.scale.name
        return array

    def check(self, array: Sequences) -> Sequences:
        """The array itself. Raises BadClip where the model cannot take it."""
        if self.shape[0] != array.C:
            raise BadClip(f"{array.where}: has {array.C} channels, the model takes {self.shape[0]}")
        if self.T > array.F:
            raise BadClip(f"{array.where}: has {array.F} frames, a prediction takes {self.T}")
        return array

    def predict(self, array: Sequences, first: int, frames: int | None = None) -> tuple[Tensor, np.ndarray]:
        """From the T frames from `first` on of every sequence: (what the model says, (N, frames, C_out, H, W); in the
        array's units and size, (N, frames, C_out, h, w))."""
        units, values = [], []
        for n in range(array.N):
            past = torch.from_numpy(self.scale.to_unit(array.read(n, first, first + self.T)))
            units.append(self.ahead(past, frames))
            values.append(array.back(self.scale.to_values(units[-1].numpy())))
        return torch.stack(units), np.stack(values)

    def truth(self, array: Sequences, first: int, last: int) -> Tensor | None:
        """(N, frames, C_out, H, W) as the model would say it; None where there is none of it, or values are missing."""
        last = min(last, array.F)
        if last <= first:
            return None
        try:
            frames = [self.scale.to_unit(array.read(n, first, last)) for n in range(array.N)]
        except BadClip:
            return None
        return self.scale.known(torch.from_numpy(np.stack(frames)))


def predict_arrays(request: Request, predictor: ArrayPredictor) -> Iterator[str]:
    """As predict_clips, of files of arrays: every prediction is an npy file with the axes of the input, or pictures of
    the first predicted channel of the first sequence."""
    clips = find_arrays(Path(request.input), "--input")
    outputs = outputs_of(request, clips)
    if request.side_by_side and Path(request.output).suffix.lower() == ".npy":
        raise UserError("--side_by_side: shows pictures; leave it out, or name an --output of pictures")
    yield from one_by_one(clips, request, lambda clip: predict_file(clip, request, predictor, outputs))


def predict_file(clip: Clip, request: Request, predictor: ArrayPredictor, outputs: Outputs) -> Iterator[str]:
    """Predict for every window of a file that is asked for. Raises BadClip where it cannot be read, or is too short."""
    array, T, ahead = predictor.open(clip.path), predictor.T, request.frames or predictor.frames
    newest = array.F - T
    starts = request.start or (range(0, newest + 1, request.every) if request.every else [newest])
    if late := [start for start in starts if start > newest]:
        raise BadClip(f"{array.where}: has {array.F} frames, a prediction from --start {late[0]} takes {T}")
    for start in starts:
        units, values = predictor.predict(array, start, ahead)
        truth, output = predictor.truth(array, start + T, start + T + ahead), outputs.path(clip, start)
        if output.suffix.lower() == ".npy":
            frames = array.laid_out(values)
        else:
            past = predictor.truth(array, start, start + T)
            frames = pictures(past[0], truth[0] if truth is not None else None, units[0], predictor.scale, request)
        write_clip(output, frames, RATE)
        yield f"{clip.path} from frame {start}: {output}{score(predictor.scale, units, truth)}"


def score(scale: Scale, predicted: Tensor, truth: Tensor | None) -> str:
    """The metrics of the predicted frames whose truth is known, in words; nothing where none is."""
    if truth is None:
        return ""
    scores = Scores(["physical"], scale=scale)
    scores.update(predicted[:, : truth.shape[1]], truth)
    found = scores.summary()["physical"]
    return "".join(f"  {metric.replace('_', ' of channel ')} {result['mean']:.4g}" for metric, result in found.items())


def pictures(past: Tensor, truth: Tensor | None, predicted: Tensor, scale: Scale, request: Request) -> np.ndarray:
    """(T, C, H, W) each -> (frames, h, w, 3) uint8 of the first channel, small ones enlarged, over a bar of what the
    colours stand for; with request.side_by_side as `predict` shows it."""
    enlarge = max(1, WIDTH // past.shape[-1])

    def shown(frames: Tensor | None) -> list[np.ndarray]:
        images = [as_image(frame.numpy(), scale) for frame in (() if frames is None else frames)]
        return [image.repeat(enlarge, 0).repeat(enlarge, 1) for image in images]

    images = shown(predicted)
    if request.side_by_side:
        images = beside(shown(past), shown(truth), np.stack(images), captioned=True)
    legend = bars(scale, images[0].shape[1])
    return np.stack([np.concatenate([image, legend]) for image in images])
