import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from API.metrics import METRICS, PSNR_CEILING, Scores, frame_metrics


@pytest.fixture(params=[(3, 4, 1, 64, 64), (2, 3, 3, 20, 17), (1, 2, 2, 7, 9)], ids=str)
def pair(request) -> tuple[torch.Tensor, torch.Tensor]:
    """(predicted, future); predictions leave [0, 1]."""
    future = torch.rand(*request.param)
    return future + 0.3 * torch.randn_like(future), future


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
        assert frame_metrics(x, x, protocol)["ssim"][0].tolist() == pytest.approx([1.0] * 2)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10])
def test_scores_do_not_hang_on_the_batch_size(batch_size):
    future = torch.rand(10, 3, 1, 12, 12)
    predicted = future + 0.1 * torch.randn_like(future)
    scores = Scores()
    for i in range(0, 10, batch_size):
        scores.update(predicted[i : i + batch_size], future[i : i + batch_size])
    summary = scores.summary()
    whole = frame_metrics(predicted, future)
    for metric in METRICS:
        sequences = whole[metric].double().mean(1)
        assert summary[metric]["mean"] == pytest.approx(sequences.mean().item(), rel=1e-6)
        assert summary[metric]["standard_error"] == pytest.approx(sequences.std().item() / math.sqrt(10), rel=1e-5)
        assert summary[metric]["per_frame"] == pytest.approx(whole[metric].double().mean(0).tolist(), rel=1e-6)


def test_frames_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="7x7"):
        frame_metrics(torch.zeros(1, 1, 1, 6, 8), torch.zeros(1, 1, 1, 6, 8))


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="--protocol"):
        Scores("nonsense")
