"""LPIPS with AlexNet (Zhang et al., CVPR 2018), by the lpips package, its trunk's weights from a file."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import UserError

TRUNK = "alexnet-owt-7be5be79.pth"  # torchvision's ImageNet weights, as torch's hub names them
SMALLEST = 31  # pixels a side that its five layers need
ADDRESS = f"https://download.pytorch.org/models/{TRUNK}"


def find_lpips(
    asked: bool, weights: str | None, device: torch.device, frame: Sequence[int]
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS where it is asked for, has its weights and can see frames of (H, W); else a line about it and None."""
    if not (asked or weights):
        return None
    try:
        if min(frame) < SMALLEST:
            size = "x".join(map(str, frame))
            raise UserError(f"--lpips: AlexNet sees frames of {SMALLEST}x{SMALLEST} or more, these are {size}")
        return load_lpips(weights, device)
    except UserError as error:
        print(f"going on without LPIPS: {error}", flush=True)
        return None


def find_trunk(given: str | None) -> Path:
    """The file of the trunk's weights: given, or in the hub's cache, or fetched into it.

    Raises UserError in one line that says which file goes where.
    """
    if given:
        if not Path(given).is_file():
            raise UserError(f"--lpips_weights {given}: no such file")
        return Path(given)
    path = Path(torch.hub.get_dir()) / "checkpoints" / TRUNK
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(ADDRESS, str(path), hash_prefix="7be5be79", progress=False)
        except (OSError, RuntimeError):  # no network, or something else came than the file
            raise UserError(f"--lpips: put {TRUNK} into {path.parent}, or name it with --lpips_weights") from None
    return path


def load_lpips(weights: str | None, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (N, C, H, W) in [0, 1] twice -> (N). Grey frames count as colour; raises UserError as find_trunk."""
    path = find_trunk(weights)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        trunk = {name: value for name, value in state.items() if name.startswith("features.")}
    except Exception as error:  # many kinds of damage
        raise UserError(f"--lpips_weights {path}: not AlexNet's weights ({type(error).__name__})") from None
    try:
        import lpips
    except ImportError:
        raise UserError("--lpips: needs the package lpips; pip install lpips") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package still calls torchvision by names that it deprecates
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)  # rand: no download, the weights come now
    names = {
        ".".join(name.split(".")[1:]): name for name in network.net.state_dict()
    }  # '0.weight' -> 'slice1.0.weight'
    try:
        network.net.load_state_dict({names[name.removeprefix("features.")]: value for name, value in trunk.items()})
    except (KeyError, RuntimeError):
        raise UserError(f"--lpips_weights {path}: not AlexNet's weights") from None
    network = network.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def distance(predicted: Tensor, future: Tensor) -> Tensor:
        if predicted.shape[1] not in (1, 3):
            predicted, future = (x.mean(1, keepdim=True) for x in (predicted, future))
        colour = [x.expand(-1, 3, -1, -1) * 2 - 1 for x in (predicted, future)]  # [-1, 1]
        with torch.autocast(device.type, enabled=False):
            return network(*colour).flatten()

    return distance
