import csv

import numpy as np
import pytest
from PIL import Image

from API.evaluation.compare import compare, load_run, paired_difference, verdict
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
    text = compare(paths, ["strict", "openstl"], tmp_path / "out")
    table = read_table(tmp_path / "out")
    for metric in ("mse", "mae", "ssim", "psnr"):
        assert [table["strict", run, metric]["verdict"] for run in ("first", "same", "better", "worse")] == [
            "", "within noise", "better", "worse",
        ]  # fmt: skip
    assert float(table["strict", "first", "mse"]["mean"]) == pytest.approx(0.01 * 256, rel=0.05)
    assert float(table["openstl", "first", "ssim"]["mean"]) > float(table["strict", "first", "ssim"]["mean"])
    assert text == (tmp_path / "out/comparison.md").read_text()
    assert "Another training seed" in text
    assert "seed" not in compare(paths[:1], ["strict"], tmp_path / "alone")
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
    predictions(tmp_path / "b.npz", 0.1, n=30)
    predictions(tmp_path / "c.npz", 0.1, future=np.zeros((40, 3, 1, 16, 16), np.float32))
    compare([tmp_path / f"{name}.npz" for name in "abc"], ["strict"], tmp_path / "out")
    table = read_table(tmp_path / "out")
    assert table["strict", "b", "mse"]["verdict"] == table["strict", "c", "mse"]["verdict"] == "other sequences"


def test_run_folders_and_predictions_go_together(tmp_path):
    predictions(tmp_path / "theirs.npz", 0.1)
    theirs = load_run(tmp_path / "theirs.npz", ["strict"])
    ours = {f"model/{name}": values - 0.5 * (name == "mse") for name, values in theirs.values.items()}
    (tmp_path / "ours").mkdir()
    write_arrays(tmp_path / "ours/scores.npz", **ours, **{"copy_last/mse": np.ones((40, 3))})
    compare([tmp_path / "ours", tmp_path / "theirs.npz"], ["strict"], tmp_path / "out")
    assert read_table(tmp_path / "out")["strict", "theirs", "mse"]["verdict"] == "worse"
    with pytest.raises(ValueError, match=r"ours: was not tested under openstl; test it again with --protocol openstl"):
        compare([tmp_path / "ours"], ["openstl"], tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(predicted=None), "needs an array 'predicted'"),
        (dict(future=np.zeros((3, 3))), "needs an array 'future'"),
        (dict(predicted=np.zeros((2, 3, 1, 16, 16))), "must be alike"),
        (dict(future=np.array([{}], dtype=object)), "a.npz"),
    ],
    ids=str,
)
def test_files_that_are_no_predictions_are_named(tmp_path, changes, words):
    predictions(tmp_path / "a.npz", 0.1, **changes)
    with pytest.raises(ValueError, match=words) as error:
        compare([tmp_path / "a.npz"], ["strict"], tmp_path / "out")
    assert "\n" not in str(error.value)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="not a sound npz"):
        compare([tmp_path / "text.npz"], ["strict"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"none\.npz: there is no such"):
        compare([tmp_path / "none.npz"], ["strict"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a tested run"):
        compare([tmp_path / "empty"], ["strict"], tmp_path / "out")
