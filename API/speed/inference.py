"""Prepare a trained model for inference only: the same predictions with less work."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from .mish import swap_mish
from .norms import swap_norms

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
TOLERANCE = 1e-3  # of the norm of a prediction, between before and after: rounding may tip some bins of a hard gate


def prepare_inference(model: nn.Module, example: Tensor, precision: str) -> list[str]:
    """Change a model's layers in place, for inference only; returns a line for each thing that was applied.

    example: an input to compare predictions with, on the model's device. precision: fp32, tf32 or bf16, as it will run.
    """
    model.eval()
    lines = swap_mish(model) + swap_norms(model) + fold_norms(model, example)
    if precision == "bf16":
        lines += round_weights(model, example)
    return lines


@torch.no_grad()
def fold_norms(model: nn.Module, example: Tensor) -> list[str]:
    """Let a convolution do what the BatchNorm right behind it would: in evaluation mode that scales and shifts every
    channel. Compares a prediction before and after, and where they differ takes everything back."""
    before, replaced = model(example), []
    for sequence in [module for module in model.modules() if is_plain(module, nn.Sequential)]:
        for i, (layer, norm) in enumerate(itertools.pairwise(sequence)):
            if foldable(layer, norm):
                replaced += [(sequence, i, layer), (sequence, i + 1, norm)]
                sequence[i] = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, nn.ConvTranspose2d))
                sequence[i + 1] = nn.Identity().eval()
    if not replaced:
        return []
    if reason := changed(model, example, before):
        for sequence, i, layer in replaced:
            sequence[i] = layer
        return [f"warning: BatchNorms are not folded into convolutions: {reason}"]
    return [f"{len(replaced) // 2} BatchNorms folded into convolutions"]


def changed(model: nn.Module, example: Tensor, before: Tensor) -> str:
    """In words how far the prediction is from the one before, or why there is none; nothing where it is the same."""
    try:
        difference = ((model(example) - before).float().norm() / before.float().norm()).item()
    except Exception as error:  # edits may use a layer in any way
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
    return "" if difference <= TOLERANCE else f"predictions would differ by {difference:.1e}"  # a NaN differs, too


def foldable(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether layer is a convolution and norm a BatchNorm that PyTorch's own folding is known to be right for."""
    known = type(layer) in CONVOLUTIONS and type(norm) is nn.BatchNorm2d and is_plain(layer) and is_plain(norm)
    return known and norm.track_running_stats and (layer.groups == 1 or type(layer) is nn.Conv2d)


def is_plain(module: nn.Module, kind: type | None = None) -> bool:
    """Whether calling module does what its class does, and no more: no hooks, no parametrisation; with kind, whether
    it inherits its forward from there."""
    if kind is not None and type(module).forward is not kind.forward:
        return False
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and "forward" not in vars(module) and not nn.utils.parametrize.is_parametrized(module)


@torch.no_grad()
def round_weights(model: nn.Module, example: Tensor) -> list[str]:
    """Round the weights of matrix products and convolutions to bfloat16, for good, where example meets autocast.

    Predictions under autocast are the same: it rounds float32 weights at every call, which moves 900 MB for the Moving
    MNIST model. A layer in a part that leaves autocast keeps its weights. Compares a prediction before and
    after, and where they differ, or a weight is used elsewhere and does not fit there, takes everything back.
    """
    kinds, device = (nn.Linear, *CONVOLUTIONS), example.device.type
    plain = [module for module in model.modules() if type(module) in kinds and is_plain(module)]
    rounded: dict[nn.Module, bool] = {}

    def note(module: nn.Module, _) -> None:
        rounded[module] = rounded.get(module, True) and torch.is_autocast_enabled(device)

    hooks = [module.register_forward_pre_hook(note) for module in plain]
    with torch.autocast(device, torch.bfloat16):
        before = model(example)
        for hook in hooks:
            hook.remove()
        found = [module for module in plain if rounded.get(module)]
        weights = {weight: weight.data for module in found for weight in module.parameters()}
        for weight, data in weights.items():  # not module.to: buffers stay
            weight.data = data.to(torch.bfloat16)
        reason = changed(model, example, before)
    if reason:
        for weight, data in weights.items():
            weight.data = data
        return [f"warning: weights are not rounded to bfloat16: {reason}"]
    return [f"weights of {len(found)} layers rounded to bfloat16"]
