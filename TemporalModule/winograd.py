"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3), for float32 on a CPU.

Convolving is multiplying polynomials, and polynomials can be multiplied by their values at points. So a 4x4 tile of the
result comes from a 6x6 tile of x in three steps: take tile and kernel to 6x6 points, multiply at each point, which
over all tiles and channels is a matrix product, and interpolate. 36 multiplications do the work of 4 * 4 * 3 * 3 = 144.
The libraries of GPUs do so by themselves, PyTorch on a CPU does not.

Sources: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016); for the choice of points Barabasz et
al., Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks (2020).
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .lean import ConvTranspose2d, product_dtype

TILE, REACH = 4, 6  # a side of the result's tiles, and of those of x that they hang on
# The last point is infinity. So chosen, float32 loses little to rounding; the textbook's 0, ±1, ±2 lose twice as much.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
MANY_CHANNELS, MANY_PIXELS = 128, 2048  # where it is faster; found by trial on two cores of an AMD EPYC
AT_ONCE = 8192  # pixels in work at a time, so that values at points do not fill the memory


class Conv3x3(nn.Conv2d):
    """nn.Conv2d with a kernel of 3 and padding of 1: (B, C, H, W) -> (B, O, H / stride, W / stride). Made without bias;
    a BatchNorm folded into it brings one."""

    def __init__(self, C_in: int, C_out: int, stride: int = 1) -> None:
        super().__init__(C_in, C_out, 3, stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return winograd(x, self.weight, self.bias) if pays(x, self) else super().forward(x)


class ConvTranspose3x3(ConvTranspose2d):
    """nn.ConvTranspose2d with a kernel of 3 and padding of 1, of stride 1: (B, C, H, W) -> (B, O, H, W)."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__(C_in, C_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not pays(x, self):
            return super().forward(x)
        return winograd(x, self.weight.transpose(0, 1).flip(2, 3), self.bias)


def pays(x: Tensor, layer: nn.Module) -> bool:
    """Whether winograd is faster for x than the layer's own way. Never where x is only traced or counted."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and product_dtype(x) == x.dtype == torch.float32
        and layer.stride == (1, 1)
        and min(layer.in_channels, layer.out_channels) >= MANY_CHANNELS
        and x[:, 0].numel() >= MANY_PIXELS
        and x.shape[2] % TILE == x.shape[3] % TILE == 0
    )


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1): x (B, C, H, W), H and W multiples of 4, weight (O, C, 3, 3), bias (O,) ->
    (B, O, H, W), channels last in memory. Keeps x and weight for backward."""
    return _Winograd.apply(x, weight, bias)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        _, of_tile, interpolation = matrices(x.dtype)
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        kernels = _kernels_at_points(weight)  # (36, O, C)
        y = x.new_empty(*x.shape[:3], len(weight))  # (B, H, W, O)
        for x_part, y_part in _portions(x, y):
            values = _at_points(of_tile, _tiles(_padded(x_part), REACH))  # (36, tiles, C)
            products = values @ kernels.mT  # (36, tiles, O)
            tiles = _tiles(y_part, TILE)
            result = (interpolation @ products.transpose(0, 1)).view(tiles.shape)
            torch.add(result, 0 if bias is None else bias, out=tiles)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """The transpose of every step, the last one first."""
        x, weight = ctx.saved_tensors
        of_kernel, of_tile, interpolation = matrices(x.dtype)
        B, C, H, W = x.shape
        x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
        kernels = _kernels_at_points(weight)  # (36, O, C)
        to_kernels, to_x = x.new_zeros(kernels.shape), x.new_zeros(B, H + 2, W + 2, C)  # of x with its padding
        for x_part, grad_part, to_x_part in _portions(x, grad, to_x):
            to_products = _at_points(interpolation.T, _tiles(grad_part, TILE))  # (36, tiles, O)
            values = _at_points(of_tile, _tiles(_padded(x_part), REACH))  # (36, tiles, C)
            to_kernels.baddbmm_(to_products.mT, values)
            tiles = _tiles(to_x_part, REACH)
            to_tiles = (of_tile.T @ (to_products @ kernels).transpose(0, 1)).view(tiles.shape)
            for i, j in itertools.product((slice(TILE), slice(TILE, None)), repeat=2):  # parts that do not overlap
                tiles[..., i, j, :].add_(to_tiles[..., i, j, :])
        to_weight = (of_kernel.T @ to_kernels.transpose(0, 1)).mT.reshape(weight.shape)
        to_bias = grad.sum((0, 1, 2)) if ctx.needs_input_grad[2] else None
        return to_x[:, 1:-1, 1:-1].permute(0, 3, 1, 2), to_weight, to_bias


def _portions(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors (B, H, W, …) of one batch, a few images at a time."""
    images = max(1, AT_ONCE // tensors[0][0, ..., 0].numel())
    return zip(*(tensor.split(images) for tensor in tensors))


def _padded(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H + 2, W + 2, C), zeros around."""
    return nn.functional.pad(x, (0, 0, 1, 1, 1, 1))


def _tiles(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) -> (B, rows, columns, side, side, C): the square tiles of x, TILE apart; a view."""
    return x.unfold(1, side, TILE).unfold(2, side, TILE).permute(0, 1, 2, 4, 5, 3)


def _at_points(matrix: Tensor, tiles: Tensor) -> Tensor:
    """matrix (points, side * side), tiles (B, rows, columns, side, side, C) -> (points, B * rows * columns, C)."""
    *_, columns, _, _, C = tiles.shape
    values = tiles.new_empty(*tiles.shape[:3], len(matrix), C)
    for row, at_points in zip(itertools.chain(*tiles), values.flatten(0, 1)):  # a row of tiles fits a CPU's cache
        torch.bmm(matrix.expand(columns, -1, -1), row.reshape(columns, -1, C), out=at_points)
    return values.flatten(0, 2).transpose(0, 1)


def _kernels_at_points(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (36, O, C)."""
    return (matrices(weight.dtype)[0] @ weight.flatten(2).mT).transpose(0, 1)


@functools.cache
def matrices(dtype: torch.dtype, points: Sequence[float] = POINTS) -> tuple[Tensor, Tensor, Tensor]:
    """What takes a kernel's 9 values to the points (36, 9), a tile's 36 ones (36, 36), and the products back to the
    16 of a result (16, 36). Toom and Cook's, for both directions of the image at once."""
    count = len(points) + 1
    kernel, tile, result = (torch.zeros(count, n, dtype=torch.float64) for n in (3, count, count - 2))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        kernel[i] = point ** torch.arange(3, dtype=torch.float64) / math.prod(point - other for other in others)
        tile[i, :-1] = _polynomial(others)
        result[i] = point ** torch.arange(count - 2, dtype=torch.float64)
    kernel[-1, -1] = result[-1, -1] = 1  # at infinity the highest power alone counts
    tile[-1] = _polynomial(points)
    return tuple(torch.kron(m, m).to(dtype) for m in (kernel, tile, result.T.contiguous()))


def _polynomial(roots: Sequence[float]) -> Tensor:
    """The coefficients of the product of all (x - root), lowest power first."""
    coefficients = [1.0]
    for root in roots:
        coefficients = [before - root * here for before, here in zip([0.0, *coefficients], [*coefficients, 0.0])]
    return torch.tensor(coefficients, dtype=torch.float64)
