import csv

import numpy as np
import pytest
from PIL import Image

from API import UserError
from API.evaluation.compare import compare_runs, load_run, paired_difference, verdict
from API.run.files import write_arrays


def predictions(path, noise: float, seed: int = 1, n: int = 40, **changes) -> None:
    """Predictions of another model: truth and noise."""
    truth = np.random.default_rng(0).random((n, 3, 1, 16, 16)).astype(np.float32)
    arrays = {"future": truth, "predicted": truth + noise * np.random.default_rng(seed).standard_normal(truth.shape)}
    np.savez(path, **{name: a for name, a in (arrays | changes).items() if a is not None})


def read_table(folder) -> dict:
    with (folder / "comparison.csv").open() as file:
        return {(row["protocol"], row["run"], row["metric"]): row for row in csv.DictReader(file)}


def test_a_gain_within_noise_reads_as_such_and_a_real_one_too(tmp_path):
    for name, noise, seed in (("first", 0.1, 11), ("same", 0.1, 12), ("better", 0.08, 13), ("worse", 0.12, 14)):
        predictions(tmp_path / f"{name}.npz", noise, seed)
    paths = [tmp_path / f"{name}.npz" for name in ("first", "same", "better", "worse")]
    text = compare_runs(paths, ["strict", "openstl"], tmp_path / "out")
    table = read_table(tmp_path / "out")
    for metric in ("mse", "mae", "ssim", "psnr"):
        assert [table["strict", run, metric]["verdict"] for run in ("first", "same", "better", "worse")] == [
            "", "within noise", "better", "worse",
        ]  # fmt: skip
    assert float(table["strict", "first", "mse"]["mean"]) == pytest.approx(0.01 * 256, rel=0.05)
    assert float(table["openstl", "first", "ssim"]["mean"]) > float(table["strict", "first", "ssim"]["mean"])
    assert text == (tmp_path / "out/comparison.md").read_text()
    assert "Another training seed" in text
    assert "seed" not in compare_runs(paths[:1], ["strict"], tmp_path / "alone")
    for name in ("curves.png", "sequences.png"):
        assert Image.open(tmp_path / "out" / name).size[0] > 300


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        shared = rng.standard_normal((60, 4))  # what makes a sequence hard for both
        difference, half = paired_difference(
            shared + 0.3 + rng.normal(0, 1, (60, 4)), shared + rng.normal(0, 1, (60, 4))
        )
        inside += abs(difference - 0.3) <= half
    assert 0.92 <= inside / 400 <= 0.98


def test_better_means_lower_errors_and_higher_similarity():
    assert verdict("mse", -1.0, 0.5) == "better"
    assert verdict("ssim", 0.1, 0.05) == "better"
    assert verdict("psnr", -1.0, 0.5) == "worse"
    assert verdict("mse", 0.4, 0.5) == "within noise"


def test_runs_on_other_sequences_are_not_subtracted(tmp_path):
    predictions(tmp_path / "a.npz", 0.1)
    predictions(tmp_path / "b.npz", 0.1, future=np.zeros((40, 3, 1, 16, 16), np.float32))
    compare_runs([tmp_path / f"{name}.npz" for name in "ab"], ["strict"], tmp_path / "out")
    row = read_table(tmp_path / "out")["strict", "b", "mse"]
    assert (row["verdict"], row["pairs"], row["difference"]) == ("other sequences", "0", "")


@pytest.mark.parametrize("places", [range(4), [30, 2, 11], [39]], ids=str)
@pytest.mark.parametrize("kind", ["float32", "float16", "uint8"])
def test_sequences_are_paired_by_what_they_are(tmp_path, places, kind):
    rng = np.random.default_rng(0)
    truth, noise = rng.integers(0, 256, (40, 3, 1, 16, 16)), rng.integers(-9, 10, (2, 40, 3, 1, 16, 16))
    ours, theirs = (truth + noise).clip(0, 255)
    np.savez(tmp_path / "ours.npz", future=(truth / 255).astype("f4"), predicted=(ours / 255).astype("f4"))
    some = [a[list(places)] if kind == "uint8" else a[list(places)] / 255 for a in (truth, theirs)]
    np.savez(tmp_path / "theirs.npz", **{n: a.astype(kind) for n, a in zip(("future", "predicted"), some)})
    text = compare_runs([tmp_path / "ours.npz", tmp_path / "theirs.npz"], ["strict"], tmp_path / "out")
    row = read_table(tmp_path / "out")["strict", "theirs", "mae"]
    errors = [np.abs(a - truth)[list(places)].sum((2, 3, 4)).mean() / 255 for a in (ours, theirs)]
    assert int(row["pairs"]) == len(places)
    assert float(row["difference"]) == pytest.approx(errors[1] - errors[0], abs=0.01 if kind == "float16" else 1e-5)
    assert f"(over the {len(places)} sequences in both)" in text
    assert (tmp_path / "out/sequences.png").is_file()


def test_runs_of_older_versions_are_paired_by_number_where_the_baselines_agree(tmp_path):
    rng = np.random.default_rng(0)
    baseline, model = rng.random((49, 3)) + 1, rng.random((49, 3))
    for name, places in {"old": range(49), "first": range(4), "other": range(4, 8)}.items():
        (tmp_path / name).mkdir()
        arrays = {f"model/{m}": model[list(places)] for m in ("mse", "mae", "ssim", "psnr")}
        write_arrays(tmp_path / name / "scores.npz", **arrays, **{"copy_last/mse": baseline[list(places)]})
    compare_runs([tmp_path / name for name in ("old", "first", "other")], ["strict"], tmp_path / "out")
    table = read_table(tmp_path / "out")
    assert table["strict", "first", "mse"]["pairs"] == "4"
    assert float(table["strict", "first", "mse"]["difference"]) == 0
    assert table["strict", "other", "mse"]["verdict"] == "other sequences"


def stored(kind: str, eight_bits: np.ndarray) -> np.ndarray:
    """Frames of 8 bits in another range."""
    if kind == "int8":
        return (eight_bits - 128).astype(np.int8)
    if kind == "uint16":
        return (eight_bits * 257).astype(np.uint16)
    low, high = map(float, kind.split())
    return (low + eight_bits / 255 * (high - low)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "limits"),
    [("int8", (-128, 127)), ("uint16", (0, 65535)), ("-1 1", (-1, 1)), ("0 255", (0, 255)), ("0 1", None)],
)
def test_values_in_another_range_are_refused_unless_it_is_given_and_then_score_alike(tmp_path, kind, limits):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (5, 3, 1, 16, 16))
    predicted = (truth + rng.integers(-20, 21, truth.shape)).clip(0, 255)
    for frames in (truth, predicted):
        frames.flat[:2] = 0, 255
    np.savez(tmp_path / "a.npz", future=stored(kind, truth), predicted=stored(kind, predicted))
    np.savez(tmp_path / "bytes.npz", future=truth.astype(np.uint8), predicted=predicted.astype(np.uint8))
    if limits:
        with pytest.raises(
            UserError, match=r"a\.npz: 'future' holds .* to .*, not \[0, 1\] or uint8: .*--range LOW HIGH"
        ):
            compare_runs([tmp_path / "a.npz"], ["strict"], tmp_path / "out")
        assert not (tmp_path / "out").exists()
    text = compare_runs([tmp_path / "a.npz"], ["strict"], tmp_path / "out", limits)
    compare_runs([tmp_path / "bytes.npz"], ["strict"], tmp_path / "bytes")
    found, expected = (read_table(tmp_path / f)["strict", n, "psnr"] for f, n in (("out", "a"), ("bytes", "bytes")))
    assert float(found["mean"]) == pytest.approx(float(expected["mean"]), rel=1e-4)
    low, high = limits or (0, 1)
    assert f"future {low:.6g} to {high:.6g}" in text


def test_values_outside_the_given_range_and_those_that_are_no_numbers_are_refused(tmp_path):
    predictions(tmp_path / "a.npz", 0.1)
    with pytest.raises(UserError, match=r"'future' holds .* to .*, not --range 0 0\.5"):
        compare_runs([tmp_path / "a.npz"], ["strict"], tmp_path / "out", (0, 0.5))
    with pytest.raises(UserError, match="--range 1 0: give the value of black, then that of white"):
        compare_runs([tmp_path / "a.npz"], ["strict"], tmp_path / "out", (1, 0))
    predictions(tmp_path / "far.npz", 30)
    with pytest.raises(UserError, match="'predicted' holds"):
        compare_runs([tmp_path / "far.npz"], ["strict"], tmp_path / "out")
    frames = np.zeros((4, 3, 1, 16, 16), np.float32)
    frames[2:, 1] = np.nan
    predictions(tmp_path / "nan.npz", 0.1, future=np.zeros_like(frames), predicted=frames)
    with pytest.raises(UserError, match="'predicted' holds NaN or infinity in 2 sequences, the first of them number 2"):
        compare_runs([tmp_path / "nan.npz"], ["strict"], tmp_path / "out")


def test_run_folders_and_predictions_go_together(tmp_path):
    predictions(tmp_path / "theirs.npz", 0.1)
    theirs = load_run(tmp_path / "theirs.npz", ["strict"])
    ours = {f"model/{name}": values - 0.5 * (name == "mse") for name, values in theirs.values.items()}
    (tmp_path / "ours").mkdir()
    write_arrays(tmp_path / "ours/scores.npz", **ours, **{"copy_last/mse": np.ones((40, 3))})
    compare_runs([tmp_path / "ours", tmp_path / "theirs.npz"], ["strict"], tmp_path / "out")
    assert read_table(tmp_path / "out")["strict", "theirs", "mse"]["verdict"] == "worse"
    with pytest.raises(ValueError, match=r"ours: was not tested under openstl; test it again with --protocol openstl"):
        compare_runs([tmp_path / "ours"], ["openstl"], tmp_path / "out")


def test_pictures_of_another_comparison_do_not_stay(tmp_path):
    predictions(tmp_path / "a.npz", 0.1)
    predictions(tmp_path / "b.npz", 0.2, future=np.ones((40, 3, 1, 16, 16)))
    compare_runs([tmp_path / "a.npz"], ["strict"], tmp_path / "out")
    assert (tmp_path / "out/sequences.png").exists()
    compare_runs([tmp_path / "a.npz", tmp_path / "b.npz"], ["strict"], tmp_path / "out")  # no sequence in common
    assert not (tmp_path / "out/sequences.png").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(predicted=None), "needs an array 'predicted'"),
        (dict(future=np.zeros((3, 3))), "needs an array 'future'"),
        (dict(predicted=np.zeros((2, 3, 1, 16, 16))), "must be alike"),
        (dict(predicted=np.zeros((0, 3, 1, 16, 16)), future=np.zeros((0, 3, 1, 16, 16))), "not empty"),
        (dict(past=np.zeros((40, 3, 16, 16))), r"past \(40, 3, 16, 16\) must be \(N, T, C, H, W\)"),
        (dict(past=np.zeros((20, 3, 1, 16, 16))), "past .* as of future"),
        (dict(past=np.zeros((40, 3, 1, 8, 16))), "past .* as of future"),
        (dict(past=np.zeros((40, 0, 1, 16, 16))), "past .* as of future"),
        (dict(future=np.array([{}], dtype=object)), "a.npz"),
    ],
    ids=str,
)
def test_files_that_are_no_predictions_are_named(tmp_path, changes, words):
    predictions(tmp_path / "a.npz", 0.1, **changes)
    with pytest.raises(ValueError, match=words) as error:
        compare_runs([tmp_path / "a.npz"], ["strict"], tmp_path / "out")
    assert "\n" not in str(error.value)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="not a sound npz"):
        compare_runs([tmp_path / "text.npz"], ["strict"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"none\.npz: there is no such"):
        compare_runs([tmp_path / "none.npz"], ["strict"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a tested run"):
        compare_runs([tmp_path / "empty"], ["strict"], tmp_path / "out")
