"""Make a trained model ready to predict, and never to learn again: the same predictions with less work."""

import itertools

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def ready_to_predict(model: nn.Module, precision: str) -> nn.Module:
    """The model itself, in evaluation mode, its layers changed. precision: fp32, tf32 or bf16, as it will run."""
    model.eval()
    fold_norms(model)
    if precision == "bf16":
        round_weights(model)
    return model


def fold_norms(model: nn.Module) -> None:
    """Let a convolution do what the BatchNorm right behind it would: in evaluation mode that scales and shifts every
    channel. Up to rounding the predictions are the same."""
    for sequence in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for i, (layer, norm) in enumerate(itertools.pairwise(sequence)):
            if isinstance(layer, CONVOLUTIONS) and isinstance(norm, nn.BatchNorm2d):
                sequence[i] = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, nn.ConvTranspose2d))
                sequence[i + 1] = nn.Identity().eval()


def round_weights(model: nn.Module) -> None:
    """Round the weights of model's matrix products and convolutions to bfloat16, for good.

    The predictions are the same to the bit: autocast rounds float32 weights anew at every call, which moves 900 MB for
    the Moving MNIST model. And it takes half the memory.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            module.to(torch.bfloat16)
