"""DFDU, the unit the paper is named after: decompose the features into height and width signals, filter their
spectra with a learnable threshold, predict with a linear layer, and recombine.

Signals, for c = r * S channels cut into r segments of S:

    height   one signal per segment and column:   (B, H, W, c) -> (B, r*W, H*S)    thresholds (r, W)
    width    one signal per segment and row:      (B, H, W, c) -> (B, r*H, W*S)    thresholds (r, H)
"""

from einops import rearrange
from torch import Tensor, nn

from .filter import ThresholdFilter


class DFDU(nn.Module):
    """Disentangling and filtering dynamics unit: (B, H, W, c) -> (B, H, W, c); c must divide by segments."""

    def __init__(
        self, channels: int, height: int, width: int, segments: int, COF: float, release: bool = False
    ) -> None:
        super().__init__()
        self.segments, S = segments, channels // segments
        self.height, self.width = height, width
        length_h, length_w = height * S, width * S
        self.filter_h = ThresholdFilter(segments, width, length_h, COF, release)
        self.filter_w = ThresholdFilter(segments, height, length_w, COF, release)
        self.predict_h = nn.Linear((length_h + 1) // 2, length_h, bias=False)
        self.predict_w = nn.Linear((length_w + 1) // 2, length_w, bias=False)
        self.embed_h = nn.Linear(channels, channels, bias=False)
        self.embed_w = nn.Linear(channels, channels, bias=False)
        self.embed_x = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Every signal gets its prediction added; composing is linear, so it may be added where the signal lies in x.
        h = x + self.compose_h(self.predict_h(self.filter_h(self.decompose_h(x))))  # (B, H, W, c)
        w = x + self.compose_w(self.predict_w(self.filter_w(self.decompose_w(x))))  # (B, H, W, c)
        q = self.embed_x(x)  # (B, H, W, c)
        E_h = self.embed_h(h.mean(1, keepdim=True))  # (B, 1, W, c)
        E_w = self.embed_w(w.mean(2, keepdim=True))  # (B, H, 1, c)
        return h * E_w + w * E_h + q * (E_h + E_w)

    def decompose_h(self, x: Tensor) -> Tensor:
        """(B, H, W, r*S) -> (B, r*W, H*S): a signal runs down one column, S channels at each row."""
        return rearrange(x, "B H W (r S) -> B (r W) (H S)", r=self.segments)

    def decompose_w(self, x: Tensor) -> Tensor:
        """(B, H, W, r*S) -> (B, r*H, W*S): a signal runs along one row, S channels at each column."""
        return rearrange(x, "B H W (r S) -> B (r H) (W S)", r=self.segments)

    def compose_h(self, signals: Tensor) -> Tensor:
        """(B, r*W, H*S) -> (B, H, W, r*S), the inverse of decompose_h."""
        return rearrange(signals, "B (r W) (H S) -> B H W (r S)", r=self.segments, H=self.height)

    def compose_w(self, signals: Tensor) -> Tensor:
        """(B, r*H, W*S) -> (B, H, W, r*S), the inverse of decompose_w."""
        return rearrange(signals, "B (r H) (W S) -> B H W (r S)", r=self.segments, W=self.width)
