import numpy as np
import pytest
import torch

from API.datasets import digits
from API.datasets.moving import STEP, TEST, TRAIN, VAL, MovingDigits, trajectories, uniform

SHAPE = (10, 1, 64, 64)


@pytest.fixture
def moving() -> MovingDigits:
    images = np.random.default_rng(0).integers(1, 256, (20, 28, 28)).astype(np.uint8)
    return MovingDigits(images, 100, SHAPE, SHAPE, seed=3, stream=TRAIN)


def test_a_sequence_is_a_pure_function_of_its_number(moving):
    past, future = moving.__getitems__([7, 123_456_789, 3])
    alone = moving[123_456_789]
    assert torch.equal(past[1], alone[0])
    assert torch.equal(future[1], alone[1])
    again = MovingDigits(moving.digits, 100, SHAPE, SHAPE, seed=3, stream=TRAIN)
    assert all(torch.equal(a, b) for a, b in zip(again[7], (past[0], future[0])))


def test_seed_stream_and_number_each_give_other_sequences(moving):
    first = moving[0][0]
    for seed, stream, number in ((4, TRAIN, 0), (3, VAL, 0), (3, TEST, 0), (3, TRAIN, 1)):
        other = MovingDigits(moving.digits, 100, SHAPE, SHAPE, seed, stream)
        assert not torch.equal(first, other[number][0])


def test_random_numbers_are_uniform_and_uncorrelated():
    u = uniform(1, 0, np.arange(50_000), 8)
    assert 0 <= u.min() < u.max() < 1
    histogram = np.stack([np.histogram(column, 20, (0, 1))[0] for column in u.T])
    chi_squared = ((histogram - 2500) ** 2 / 2500).sum(1)
    assert chi_squared.max() < 50  # 19 degrees of freedom: 43.8 has a probability of 0.001
    neighbours = np.concatenate([u, uniform(1, 1, np.arange(50_000), 8), uniform(2, 0, np.arange(50_000), 8)], 1)
    correlation = np.corrcoef(neighbours.T) - np.eye(24)
    assert np.abs(correlation).max() < 0.02
    assert np.abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.01


def test_trajectories_follow_the_physics_step_by_step():
    u = uniform(5, 0, np.arange(200), 3)
    paths = trajectories(u, 20)
    for (y, x, angle), path in zip(u, paths):
        v_y, v_x = STEP * np.sin(2 * np.pi * angle), STEP * np.cos(2 * np.pi * angle)
        for t in range(20):
            y, x = y + v_y, x + v_x
            if y <= 0 or y >= 1:
                y, v_y = min(max(y, 0.0), 1.0), -v_y
            if x <= 0 or x >= 1:
                x, v_x = min(max(x, 0.0), 1.0), -v_x
            assert np.allclose(path[t], (y, x), atol=1e-12)


def test_frames_show_both_digits_where_the_script_says_by_maximum(moving):
    numbers = [11, 5]
    which, corners = moving.script(numbers)
    frames = moving.draw(numbers)
    for b in range(len(numbers)):
        for t in range(20):
            canvas = np.zeros((64, 64), np.uint8)
            for k in range(2):
                y, x = corners[b, k, t]
                assert 0 <= y <= 36
                assert 0 <= x <= 36
                patch = canvas[y : y + 28, x : x + 28]
                np.maximum(patch, moving.digits[which[b, k]], out=patch)
            assert np.array_equal(frames[b, t], canvas)


def test_items_are_float32_in_zero_to_one_with_past_before_future(moving):
    past, future = moving[0]
    assert past.shape == future.shape == (10, 1, 64, 64)
    assert past.dtype == torch.float32
    frames = torch.cat([past, future])
    assert 0 <= frames.min() < 0.05 < frames.max() <= 1
    assert np.array_equal((frames[:, 0] * 255).round().numpy(), moving.draw([0])[0])


def test_other_canvases_and_lengths():
    moving = MovingDigits(np.full((3, 28, 28), 255, np.uint8), 5, (4, 1, 40, 96), (7, 1, 40, 96), 0, 0)
    past, future = moving[2]
    assert past.shape == (4, 1, 40, 96)
    assert future.shape == (7, 1, 40, 96)
    assert ((torch.cat([past, future]) > 0).sum((1, 2, 3)) >= 28 * 28).all()  # whole digits in every frame


@pytest.mark.parametrize("shape", [(10, 3, 64, 64), (10, 1, 20, 64)])
def test_impossible_shapes_are_refused_with_the_flag(shape):
    with pytest.raises(ValueError, match="--in_shape"):
        MovingDigits(np.zeros((3, 28, 28), np.uint8), 5, shape, shape, 0, 0)


def test_no_digit_image_is_in_two_splits():
    splits = {name: {image.tobytes() for image in digits.digit_images(name)} for name in digits.IMAGES}
    assert sum(digits.IMAGES.values()) == 1797
    assert not splits["train"] & splits["val"]
    assert not splits["train"] & splits["test"]
    assert not splits["val"] & splits["test"]


def test_training_depends_on_the_seed_but_validation_and_test_do_not():
    for split in ("train", "val", "test"):
        one, two = (digits.dataset(split, in_shape=SHAPE, out_shape=SHAPE, seed=seed)[0][0] for seed in (1, 2))
        assert torch.equal(one, two) == (split != "train")
