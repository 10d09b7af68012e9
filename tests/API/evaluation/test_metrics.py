import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from API.clips.scale import Scale
from API.evaluation.lpips import find_lpips, load_lpips
from API.evaluation.metrics import PROTOCOLS, PSNR_CEILING, Scores


@pytest.fixture(params=[(3, 4, 1, 64, 64), (2, 3, 3, 20, 17), (1, 2, 2, 7, 9)], ids=str)
def pair(request) -> tuple[torch.Tensor, torch.Tensor]:
    """(predicted, future); predictions leave [0, 1]."""
    future = torch.rand(*request.param)
    return future + 0.3 * torch.randn_like(future), future


def frame_metrics(predicted, future, protocol="strict", lpips=None) -> dict[str, torch.Tensor]:
    """{metric: (B, T)} under a protocol."""
    scores = Scores([protocol], lpips)
    scores.update(predicted, future)
    values = scores.values()
    return {metric: values[name] for metric, name in scores.protocols[protocol].items()}


def frame_by_frame(predicted, future, measure) -> np.ndarray:
    predicted, future = predicted.clamp(0, 1).numpy(), future.numpy()
    return np.array([[measure(f, p) for f, p in zip(*pairs)] for pairs in zip(future, predicted)])


def test_ssim_and_psnr_equal_scikit_image(pair):
    ours = frame_metrics(*pair)
    ssim = frame_by_frame(*pair, lambda f, p: structural_similarity(f, p, channel_axis=0, data_range=1))
    psnr = frame_by_frame(*pair, lambda f, p: peak_signal_noise_ratio(f, p, data_range=1))
    assert np.abs(ours["ssim"].numpy() - ssim).max() < 1e-5
    assert np.abs(ours["psnr"].numpy() - psnr).max() < 1e-5


@pytest.mark.parametrize("protocol", ["openstl", "release"])
def test_the_other_protocols_take_a_data_range_of_two(pair, protocol):
    ours = frame_metrics(*pair, protocol)["ssim"].numpy()
    ssim = frame_by_frame(*pair, lambda f, p: structural_similarity(f, p, channel_axis=0, data_range=2))
    assert np.abs(ours - ssim).max() < 1e-5


def test_release_psnr_wraps_around_in_uint8(pair):
    def wrapped(f, p):
        difference = np.uint8(f * 255) - np.uint8(p * 255)
        return 20 * math.log10(255) - 10 * math.log10((difference**2).mean())

    assert np.allclose(frame_metrics(*pair, "release")["psnr"].numpy(), frame_by_frame(*pair, wrapped), atol=1e-4)


def test_mse_and_mae_are_sums_over_a_frame_of_unclipped_predictions(pair):
    predicted, future = (x.double().numpy() for x in pair)
    ours = frame_metrics(*pair)
    assert np.allclose(ours["mse"], ((predicted - future) ** 2).sum((2, 3, 4)), rtol=1e-5)
    assert np.allclose(ours["mae"], np.abs(predicted - future).sum((2, 3, 4)), rtol=1e-5)


def test_equal_frames_have_a_finite_psnr():
    x = torch.rand(1, 2, 1, 8, 8)
    for protocol in ("strict", "release"):
        assert frame_metrics(x, x, protocol)["psnr"].tolist() == [[PSNR_CEILING] * 2]
        assert frame_metrics(x, x, protocol)["ssim"][0].tolist() == pytest.approx([1.0] * 2, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10])
def test_scores_do_not_hang_on_the_batch_size(batch_size):
    future = torch.rand(10, 3, 1, 12, 12)
    predicted = future + 0.1 * torch.randn_like(future)
    scores = Scores()
    for i in range(0, 10, batch_size):
        scores.update(predicted[i : i + batch_size], future[i : i + batch_size])
    summary = scores.summary()["strict"]
    whole = frame_metrics(predicted, future)
    for metric in ("mse", "mae", "ssim", "psnr"):
        sequences = whole[metric].mean(1)
        assert summary[metric]["mean"] == pytest.approx(sequences.mean().item(), rel=1e-6)
        assert summary[metric]["standard_error"] == pytest.approx(sequences.std().item() / math.sqrt(10), rel=1e-5)
        assert summary[metric]["per_frame"] == pytest.approx(whole[metric].mean(0).tolist(), rel=1e-6)
        worst = sorted(range(10), key=lambda i: sequences[i].item(), reverse=metric in ("mse", "mae"))[:5]
        assert summary[metric]["worst"] == worst


def test_one_pass_gives_every_protocol(pair):
    scores = Scores(list(PROTOCOLS))
    scores.update(*pair)
    summary = scores.summary()
    for protocol in PROTOCOLS:
        expected = frame_metrics(*pair, protocol)
        assert {m: r["mean"] for m, r in summary[protocol].items()} == {
            m: v.mean(1).mean().item() for m, v in expected.items()
        }


@pytest.fixture
def alexnet(tmp_path):
    """A trunk that needs no download: AlexNet as torchvision builds it, at random."""
    from torchvision.models import alexnet

    network = alexnet(weights=None)
    torch.save(network.state_dict(), tmp_path / "alexnet.pth")
    return network, tmp_path / "alexnet.pth"


def test_lpips_equals_its_formula_on_the_same_trunk(alexnet):
    network, path = alexnet
    import lpips

    predicted, future = torch.rand(2, 2, 3, 1, 64, 64)
    ours = frame_metrics(predicted, future, lpips=load_lpips(path, torch.device("cpu")))["lpips"]
    heads = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)  # the learned weights of the five layers
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[:, :, None, None]

    def features(frames):
        x = (frames.flatten(0, 1).repeat(1, 3, 1, 1) * 2 - 1 - shift) / scale
        out = []
        for k, layer in enumerate(network.features):
            x = layer(x)
            if k in (1, 4, 7, 9, 11):
                out.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return out

    expected = 0
    with torch.no_grad():
        for a, b, head in zip(features(predicted), features(future), heads.lins):
            expected = expected + head.model[-1]((a - b) ** 2).mean((1, 2, 3))
    assert torch.allclose(ours.float(), expected.view(2, 3), rtol=1e-4, atol=1e-6)
    assert frame_metrics(future, future, lpips=load_lpips(path, torch.device("cpu")))["lpips"].abs().max() == 0


def test_lpips_without_weights_or_with_others_says_what_goes_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(
        ValueError, match=r"put alexnet-owt-7be5be79\.pth into .*checkpoints, or name it with --lpips_weights"
    ):
        load_lpips(None, torch.device("cpu"))
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name, words in (("none.pth", "no such file"), ("text.pth", "not AlexNet"), ("other.pth", "not AlexNet")):
        with pytest.raises(ValueError, match=rf"{name}: {words}"):
            load_lpips(tmp_path / name, torch.device("cpu"))


def test_frames_too_small_for_lpips_are_said_to_be_before_anything_is_measured(alexnet, capsys):
    _, path = alexnet
    for size, enough in ((30, False), (31, True)):
        lpips = find_lpips(False, path, torch.device("cpu"), (size, 40))
        assert (lpips is not None) == enough
        assert ("going on without LPIPS: --lpips: AlexNet sees frames" in capsys.readouterr().out) != enough
    frames = torch.rand(2, 1, 31, 40)
    assert lpips(frames, frames).abs().max() == 0


def test_frames_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="7x7"):
        frame_metrics(torch.zeros(1, 1, 1, 6, 8), torch.zeros(1, 1, 1, 6, 8))


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="--protocol"):
        Scores(["nonsense"])


def test_physical_scores_are_those_of_the_values_whose_channels_have_their_own_units():
    past_channels, limits = 3, [0, 1, -30, 50, 900, 1100]
    scale = Scale(limits, past_channels, [1, 2])
    predicted, future = torch.rand(2, 4, 5, 2, 9, 11)
    scores = Scores(["strict", "physical"], scale=scale)
    scores.update(predicted, future)
    values = scores.values()
    error = (predicted - future).numpy() * np.array([80, 200])[:, None, None]
    expected = {
        "physical_mse": (error**2).sum((2, 3, 4)),
        "physical_mae": np.abs(error).sum((2, 3, 4)),
        "physical_rmse": np.sqrt((error**2).mean((2, 3, 4))),
        "physical_rmse_1": np.sqrt((error[:, :, 0] ** 2).mean((2, 3))),
        "physical_rmse_2": np.sqrt((error[:, :, 1] ** 2).mean((2, 3))),
    }
    for name, value in expected.items():
        assert np.allclose(values[name], value, rtol=1e-5), name
    assert list(scores.summary()["physical"]) == ["mse", "mae", "rmse", "rmse_1", "rmse_2"]
    assert "physical_mse" not in Scores(["strict"], scale=scale).measurements
