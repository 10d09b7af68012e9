"""DFDNet written out plainly: the yardstick of speed.py. Float32, full-length FFTs, nothing clever, nothing shared with
the product but the names of its parameters, so that its weights load and its outputs can be compared.

It is as cheap as the authors' release in one respect: its thresholds do not learn.
"""

import torch
from torch import Tensor, nn


class ConvSC(nn.Module):
    def __init__(self, C_in: int, C_out: int, stride: int = 1, transposed: bool = False) -> None:
        super().__init__()
        if transposed and stride == 2:
            self.conv = nn.ConvTranspose2d(C_in, C_out, 3, 2, 1, output_padding=1)
        else:
            self.conv = nn.Conv2d(C_in, C_out, 3, stride, 1)
        self.norm = nn.GroupNorm(2, C_out)
        self.act = nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class STAU(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        h = 2 * c // 3
        self.expand = nn.Linear(c, 2 * h)
        self.spatial = nn.Conv2d(h, h, 3, padding=1, groups=h)
        self.reduce = nn.Linear(h, c)

    def forward(self, x: Tensor) -> Tensor:
        s, t = self.expand(x).chunk(2, -1)
        s = self.spatial(s.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.reduce(nn.functional.gelu(s) * t)


class Filter(nn.Module):
    def __init__(self, segments: int, positions: int, length: int, COF: float) -> None:
        super().__init__()
        self.length, self.cutoff = length, int(COF * length + 1)
        self.threshold = nn.Parameter(torch.full((segments, positions), 0.3), requires_grad=False)
        self.register_buffer("start", self.threshold.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        X = torch.fft.rfft(x, norm="ortho")
        keep = X.abs() >= self.threshold.flatten()[:, None]
        keep[..., : self.cutoff] = True
        return torch.fft.irfft(X * keep, n=self.length, norm="ortho")[..., ::2]


class DFDU(nn.Module):
    def __init__(self, c: int, H: int, W: int, r: int, COF: float) -> None:
        super().__init__()
        self.r, S = r, c // r
        self.filter_h, self.filter_w = Filter(r, W, H * S, COF), Filter(r, H, W * S, COF)
        self.predict_h = nn.Linear(H * S // 2, H * S, bias=False)
        self.predict_w = nn.Linear(W * S // 2, W * S, bias=False)
        self.embed_h, self.embed_w, self.embed_x = (nn.Linear(c, c, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, c = x.shape
        r, S = self.r, c // self.r
        h = x.reshape(B, H, W, r, S).permute(0, 3, 2, 1, 4).reshape(B, r * W, H * S)
        w = x.reshape(B, H, W, r, S).permute(0, 3, 1, 2, 4).reshape(B, r * H, W * S)
        h = h + self.predict_h(self.filter_h(h))
        w = w + self.predict_w(self.filter_w(w))
        h = h.reshape(B, r, W, H, S).permute(0, 3, 2, 1, 4).reshape(B, H, W, c)
        w = w.reshape(B, r, H, W, S).permute(0, 2, 3, 1, 4).reshape(B, H, W, c)
        E_h, E_w = self.embed_h(h.mean(1, keepdim=True)), self.embed_w(w.mean(2, keepdim=True))
        return h * E_w + w * E_h + self.embed_x(x) * (E_h + E_w)


class Branch(nn.Module):
    def __init__(self, c: int, H: int, W: int, r: int, COF: float) -> None:
        super().__init__()
        self.norm_stau, self.norm_dfdu = nn.LayerNorm(c), nn.LayerNorm(c)
        self.stau, self.dfdu = STAU(c), DFDU(c, H, W, r, COF)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.stau(self.norm_stau(x))
        return y + self.dfdu(self.norm_dfdu(y))


class DFDB(nn.Module):
    def __init__(self, P: int, H: int, W: int, groups: int, COF: float, residual: bool) -> None:
        super().__init__()
        c = P // groups
        self.residual = residual
        self.reduction = nn.Sequential(nn.Conv2d(P, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU())
        self.branch_r1, self.branch_r2 = Branch(c, H, W, 4, COF), Branch(c, H, W, 8, COF)
        self.expansion = nn.Sequential(nn.Conv2d(2 * c, P, 1, bias=False), nn.BatchNorm2d(P))

    def forward(self, x: Tensor) -> Tensor:
        z = self.reduction(x).permute(0, 2, 3, 1)
        z = torch.cat([self.branch_r2(z), self.branch_r1(z)], -1).permute(0, 3, 1, 2)
        z = self.expansion(z)
        return torch.relu(z + x if self.residual else z)


def stem(P: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(P, P // 2, 3, padding=1, bias=False), nn.BatchNorm2d(P // 2), nn.ReLU(),
        nn.BatchNorm2d(P // 2), nn.ReLU(),
        nn.Conv2d(P // 2, P, 3, stride, 1, bias=False), nn.BatchNorm2d(P), nn.ReLU(),
    )  # fmt: skip


class Temporal(nn.Module):
    def __init__(self, P: int, sizes: list[tuple[int, int]], depths: list[int], groups: int, COF: float) -> None:
        super().__init__()
        self.stem_first = stem(P, 2)
        self.stem_last = nn.Sequential(stem(P, 1), nn.MaxPool2d(3, 1, 1))
        self.stages = nn.ModuleList(
            nn.Sequential(*(DFDB(P, H, W, groups, COF, depth >= 4) for _ in range(depth)))
            for depth, (H, W) in zip(depths, sizes)
        )
        self.unstem_first = nn.Sequential(
            nn.ConvTranspose2d(P, P // 2, 3, padding=1), nn.BatchNorm2d(P // 2), nn.ReLU(),
            nn.ConvTranspose2d(P // 2, P, 3, 2, 1, output_padding=1),
        )  # fmt: skip


class PlainDFDNet(nn.Module):
    """Four layers, kernels of 3: past (B, T, C, H, W) -> (B, T, C, H, W)."""

    def __init__(self, in_shape, hid_S: int = 64, depths=(1, 8, 2, 8), groups: int = 2, COF: float = 0.3125) -> None:
        super().__init__()
        T, C, H, W = in_shape
        D, P = hid_S, T * hid_S
        sizes = [(H // 2, W // 2), (H // 2, W // 2), (H // 2, W // 2), (H // 4, W // 4)]
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.layers = nn.ModuleList([ConvSC(C, D), ConvSC(D, D, 2), ConvSC(D, D), ConvSC(D, D, 2)])
        self.temporal = Temporal(P, sizes, depths, groups, COF)
        self.decoder.layers = nn.ModuleList([ConvSC(D, D, s, transposed=True) for s in (2, 1, 2, 1)])
        self.decoder.readout = nn.Conv2d(D, C, 1)

    def forward(self, past: Tensor) -> Tensor:
        B, T = past.shape[:2]
        x, e = past.flatten(0, 1), []
        for layer in self.encoder.layers:
            x = layer(x)
            e.append(x)
        e = [x.reshape(B, -1, *x.shape[2:]) for x in e]
        t = self.temporal
        m = [t.unstem_first(t.stages[0](t.stem_first(e[0]))), t.stages[1](e[1]), t.stages[2](e[2])]
        m.append(t.stages[3](t.stem_last(e[3])))
        m = [x.reshape(B * T, -1, *x.shape[2:]) for x in m]
        x = m.pop()
        for layer in self.decoder.layers[:-1]:
            x = layer(x) + m.pop()
        return self.decoder.readout(self.decoder.layers[-1](x)).unflatten(0, (B, T))


class PlainLoss(nn.Module):
    """The weighted frequency loss over the whole spectrum."""

    def __init__(self, T: int, H: int, W: int) -> None:
        super().__init__()
        t, h, w = (torch.exp(-0.5 * ((torch.arange(n) - n // 2) / s) ** 2) for n, s in ((T, 8), (H, 12), (W, 12)))
        self.register_buffer("weight", 1.5 - t[:, None, None, None] * h[:, None] * w)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        F = torch.fft.fftn(prediction - target, dim=(1, 3, 4))
        return (self.weight * F.abs() ** 2).mean()
