"""The authors' checkpoints: their names and layout, turned into ours.

The release runs its branches on (B, W, H, c): what it calls h is the image's width, so h and w swap here and the 3x3
kernels of STAU are transposed. Its thresholds belong to an unnormalised FFT.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from .. import UserError
from .checkpoint import load_checkpoint
from .weights import as_checkpoint, load_into

SEGMENTS = (4, 8)  # of the authors' code; it has no flag for them
_RELEASE_NAMES = [  # ours, a pattern -> theirs
    (r"^encoder\.layers\.(\d+)\.", r"enc.enc.\1.conv."),
    (r"^decoder\.layers\.(\d+)\.", r"dec.dec.\1.conv."),
    (r"^decoder\.readout\.", r"dec.readout."),
    (r"^temporal\.stem_last\.0\.", r"hid1.net.stem."),
    (r"^temporal\.stem_first\.", r"hid1.net.stem1."),
    (r"^temporal\.unstem_first\.", r"hid1.net.Unstem1."),
    (r"^(hid1\.net\.stem1?)\.0\.", r"\1.0.conv."),
    (r"^(hid1\.net\.stem1?)\.1\.", r"\1.0.bn."),
    (r"^(hid1\.net\.stem1?)\.3\.", r"\1.1."),
    (r"^(hid1\.net\.stem1?)\.5\.", r"\1.3.conv."),
    (r"^(hid1\.net\.stem1?)\.6\.", r"\1.3.bn."),
    (r"^temporal\.stages\.(\d+)\.", lambda m: f"hid1.net.layer{int(m[1]) + 1}."),
    (r"\.reduction\.0\.", ".conv1."),
    (r"\.reduction\.1\.", ".bn1."),
    (r"\.expansion\.0\.", ".conv3."),
    (r"\.expansion\.1\.", ".bn3."),
    (r"\.branch_r1\.", ".atten."),
    (r"\.branch_r2\.", ".atten1."),
    (r"\.norm_(stau|dfdu)\.", ".norm1."),
    (r"\.stau\.expand\.", ".STAU.fc1."),
    (r"\.stau\.spatial\.", ".STAU.dwconv.dwconv."),
    (r"\.stau\.reduce\.", ".STAU.fc2."),
    (r"\.dfdu\.predict_h\.", ".DFDU.mlp_w1."),
    (r"\.dfdu\.predict_w\.", ".DFDU.mlp_h1."),
    (r"\.dfdu\.embed_h\.", ".DFDU.reweight_w."),
    (r"\.dfdu\.embed_w\.", ".DFDU.reweight_h."),
    (r"\.dfdu\.embed_x\.", ".DFDU.mlp_c."),
    (r"\.dfdu\.filter_h\.(threshold|start)$", ".DFDU.param_w"),
    (r"\.dfdu\.filter_w\.(threshold|start)$", ".DFDU.param_h"),
]
_RELEASE_UNUSED = re.compile(r"\.bn2\.|\.DFDU\.norm1\.")


def release_name(name: str) -> str:
    """The release's name of our parameter or buffer: 'decoder.readout.bias' -> 'dec.readout.bias'."""
    for pattern, theirs in _RELEASE_NAMES:
        name = re.sub(pattern, theirs, name)
    return name


def is_release(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights have the release's names."""
    return any(name.startswith(("enc.enc.", "hid1.net.")) for name in weights)


def read_release(checkpoint: str | Path | Mapping) -> dict[str, Tensor]:
    """The state dict in the authors' checkpoint, wherever it lies in it. Raises UserError where there is none."""
    name = "release checkpoint"
    if isinstance(checkpoint, (str, Path)):
        name, checkpoint = checkpoint, load_checkpoint(checkpoint)
    return as_checkpoint(checkpoint, name)["model"]


def infer_args(weights: Mapping[str, Tensor]) -> dict:
    """infer_release_args of weights under our names; of them the segments, too."""
    try:
        return infer_release_args({release_name(name): value for name, value in weights.items()}, ours=True)
    except UserError:
        first = next(iter(weights), "")
        raise UserError(f"not the weights of a DFDNet, they start with '{first[:100]}'") from None


def infer_release_args(state: Mapping[str, Tensor], ours: bool = False) -> dict:
    """DFDNet's arguments from the shapes in a release checkpoint: all but COF and the number of frames to predict.

    ours: thresholds have our shape (segments, positions), which tells the segments, too.
    Raises UserError where a name is missing.
    """

    def shape(name: str, *dims: int) -> tuple[int, ...]:
        value = state.get(name)
        if not isinstance(value, Tensor):
            raise UserError(f"not a release checkpoint: '{name}' is missing")
        if value.ndim not in dims or not value.numel():
            raise UserError(f"not a release checkpoint: '{name}' is {tuple(value.shape)}")
        return tuple(value.shape)

    def depth(stage: int) -> int:
        return len({m[1] for name in state if (m := re.match(rf"hid1\.net\.layer{stage + 1}\.(\d+)\.", name))})

    layer = len({m[1] for name in state if (m := re.match(r"enc\.enc\.(\d+)\.", name))})
    first, *rest = (shape(f"enc.enc.{i}.conv.conv.weight", 4) for i in range(max(layer, 1)))
    P, (D, C) = shape("hid1.net.stem.0.conv.weight", 4)[1], first[:2]
    depths = [depth(stage) for stage in range(layer)]
    args = dict(hid_S=D, layer=layer, kernel_size=[s[2] for s in (first, *rest)], layer_config=depths)
    stage = next((i for i, depth in enumerate(depths) if depth), None)
    if stage is not None:
        block = f"hid1.net.layer{stage + 1}.0"
        args["groups"] = P // shape(f"{block}.conv1.weight", 4)[0]
        h, w = (shape(f"{block}.atten.DFDU.param_{axis}", 1, 2) for axis in "hw")
        if ours:
            args["segments"] = (h[0], shape(f"{block}.atten1.DFDU.param_h", 2)[0])
        scale = 2 ** max(1, (stage + 1) // 2)  # every second layer halves; the first stage's stem does, too
        H, W = (math.prod(axis) // args.get("segments", SEGMENTS)[0] * scale for axis in (h, w))
        args["in_shape"] = (P // D, C, H, W)
        args["out_shape"] = (P // D, shape("dec.readout.weight", 4)[0], H, W)
    return args


def convert_release(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The release's state dict under our names and in our layout, checked against model name by name."""
    ours, used = {}, set()
    for name, target in model.state_dict().items():
        theirs = release_name(name)
        value = state.get(theirs)
        if not isinstance(value, Tensor):
            raise UserError(f"release checkpoint: '{theirs}' is missing (our '{name}')")
        thresholds = theirs.endswith(("param_h", "param_w"))  # flat there
        if value.numel() != target.numel() or (value.shape != target.shape and not thresholds):
            shapes = f"{tuple(value.shape)}, the model's '{name}' {tuple(target.shape)}"
            raise UserError(f"release checkpoint: '{theirs}' is {shapes}")
        if theirs.endswith("dwconv.weight"):
            value = value.transpose(-1, -2)
        elif theirs.endswith("param_h"):  # segment slow, position fast
            value = value.reshape(target.shape)
        elif theirs.endswith("param_w"):  # position slow, segment fast
            value = value.reshape(target.shape[::-1]).T
        if thresholds:
            value = value / math.sqrt(model.get_submodule(name.rpartition(".")[0]).length)
        ours[name] = value
        used.add(theirs)
    left = next((name for name in state if name not in used and not _RELEASE_UNUSED.search(name)), None)
    if left is not None:
        raise UserError(f"release checkpoint: '{left}' has no place in the model")
    return ours


def load_weights(model: nn.Module, state: Mapping, path: str | Path) -> nn.Module:
    """The model with a checkpoint's weights, ours or the authors'. Raises UserError where they do not fit."""
    weights = as_checkpoint(state, path)["model"]
    if is_release(weights):
        try:
            weights = convert_release(weights, model)
        except UserError as error:
            raise UserError(f"{path}: does not fit the model of these flags: {error}") from None
    load_into(model, weights, path)
    return model
