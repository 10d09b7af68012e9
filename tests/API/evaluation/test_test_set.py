import gc
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from API.evaluation.compare import compare_runs
from API.evaluation.sequences import digest, fingerprints, match
from API.evaluation.test_set import evaluate
from API.machine.device import Machine
from API.run.recorder import Recorder


class Fading(nn.Module):
    """The newest frame times a weight, twice."""

    def __init__(self, weight: float = 0.9) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, past):
        return past[:, -1:].repeat(1, 2, 1, 1, 1) * self.weight


def sequences(seed: int = 0, count: int = 6) -> TensorDataset:
    """Three past frames and two future ones each."""
    frames = torch.randint(256, (count, 5, 1, 16, 16), generator=torch.Generator().manual_seed(seed)) / 255
    return TensorDataset(frames[:, :3], frames[:, 3:])


@pytest.fixture
def test(tmp_path, monkeypatch):
    """Test a model in the run folder `run`; returns what test.json says."""
    monkeypatch.setattr("API.evaluation.test_set.draw_examples", lambda *_: None)
    monkeypatch.setattr("API.evaluation.figures.frame_curves", lambda results, path, title="": path.touch())

    def run(data=None, model=None, checkpoint="checkpoints/best.pth", precision="fp32", flags=None, **options) -> dict:
        recorder = Recorder(tmp_path / "run", enter=True)
        model = model or Fading()
        (recorder.folder / checkpoint).write_text(str(model.weight.item()))
        about = {"dataname": "noise", "data_root": "data", "checkpoint": str(recorder.folder / checkpoint)}
        about["model_flags"] = flags or {"COF": 0.3125}
        machine = Machine("cpu", 0, precision, 0, False)
        loader = DataLoader(data or sequences(), batch_size=4)
        return evaluate(model, loader, machine, recorder, about, **options)

    return run


def read(folder) -> dict:
    return json.loads((folder / "test.json").read_text())


def test_results_say_what_they_were_measured_on(test, tmp_path):
    content = test()
    assert content == {k: v for k, v in read(tmp_path / "run").items() if k != "version"}
    assert read(tmp_path / "run")["version"] == 1
    assert content["data_root"] == "data"
    on = content["measured_on"]
    assert on["checkpoint"] == "checkpoints/best.pth"
    expected = {"precision": "fp32", "device": "cpu", "threads": 1, "processes": 1, "past": 3, "future": 2}
    assert {name: on[name] for name in expected} == expected
    for name in ("date", "command", "git_commit", "torch", "numpy", "python", "cpu", "packages", "data_fingerprint"):
        assert on[name], name
    scores = np.load(tmp_path / "run/scores.npz")
    assert on["data_fingerprint"] == digest(scores["sequences"])
    past, future = sequences().tensors
    assert np.array_equal(scores["sequences"], torch.stack([fingerprints(past), fingerprints(future)], 1).numpy())


@pytest.mark.parametrize(
    "other",
    [
        dict(data=sequences(seed=1)),
        dict(data=sequences(count=5)),
        dict(checkpoint="checkpoints/last.pth", model=Fading(0.5)),
        dict(precision="bf16"),
        dict(flags={"COF": 0.5}),
    ],
    ids=["other data", "fewer sequences", "another checkpoint", "another precision", "another model"],
)
def test_a_test_that_measures_something_else_overwrites_nothing(test, tmp_path, other):
    test(save_predictions=2)
    run = tmp_path / "run"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "log.txt"}
    content = test(**other)
    assert {p: p.read_bytes() for p in before} == before
    (folder,) = (run / "tests").iterdir()
    assert folder.name.startswith("noise-3to2-")
    assert {k: v for k, v in read(folder).items() if k != "version"} == content
    assert not (folder / "predictions.npz").exists()
    assert (folder / "figures/frames.png").exists()
    test(**other, save_predictions=1)  # its repetition
    assert [p.name for p in (run / "tests").iterdir()] == [folder.name]
    assert np.load(folder / "predictions.npz")["predicted"].shape == (1, 2, 1, 16, 16)
    assert f"kept in {folder}" in (run / "log.txt").read_text()


def test_the_same_test_under_another_protocol_adds_to_the_first(test, tmp_path):
    first, second = test(), test(protocols=["openstl"])
    assert list(second)[-2:] == ["strict", "openstl"]
    assert second["strict"] == first["strict"]
    assert list(second["measured_earlier"]) == ["ssim"]  # what openstl does not measure itself
    assert second["measured_earlier"]["ssim"]["date"] == first["measured_on"]["date"]
    compare_runs([tmp_path / "run"], ["strict", "openstl"], tmp_path / "out")
    assert "measured_earlier" not in test(protocols=["strict", "openstl"])


def test_predictions_stay_where_they_would_be_the_same(test, tmp_path):
    test(save_predictions=2)
    before = (tmp_path / "run/predictions.npz").read_bytes()
    test(protocols=["openstl"])
    assert (tmp_path / "run/predictions.npz").read_bytes() == before


def test_other_weights_under_the_name_of_a_checkpoint_replace_what_it_scored_before(test, tmp_path):
    test(save_predictions=2)
    content = test(model=Fading(0.5), protocols=["openstl"])
    assert "strict" not in content
    assert "model/ssim" not in np.load(tmp_path / "run/scores.npz")
    assert not (tmp_path / "run/predictions.npz").exists()  # they are of the old weights
    assert not (tmp_path / "run/tests").exists()


def test_results_of_which_nobody_knows_what_they_measure_stay_as_they_are(test, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("test.json", "predictions.npz"):
        (tmp_path / "run" / name).write_text("{}")
    test()
    assert all((tmp_path / "run" / name).read_text() == "{}" for name in ("test.json", "predictions.npz"))
    (folder,) = (tmp_path / "run/tests").iterdir()
    assert read(folder)["version"] == 1


def test_a_run_folder_that_was_moved_is_the_same_run(test, tmp_path):
    test()
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "run", tmp_path / "elsewhere/run")
    shutil.copytree(tmp_path / "elsewhere/run", tmp_path / "run")
    test()
    assert not (tmp_path / "run/tests").exists()


def test_predictions_are_those_of_the_first_sequences_and_hold_no_batch_in_memory(test, tmp_path):
    test(save_predictions=5)
    saved = np.load(tmp_path / "run/predictions.npz")
    past, future = sequences().tensors
    assert saved["version"] == 1
    assert np.array_equal(saved["past"], past[:5])
    assert np.array_equal(saved["future"], future[:5])
    assert np.allclose(saved["predicted"], past[:5, -1:] * 0.9)


def test_what_a_data_set_has_to_say_of_its_scores_stands_beside_them(test, tmp_path):
    data = sequences()
    data.note = "generated, not the published set"
    assert test(data)["note"] == data.note
    assert f"6 sequences ({data.note})" in (tmp_path / "run/log.txt").read_text()


def test_the_number_of_tensors_kept_does_not_grow_with_the_test_set(test):
    alive = {}

    class Watched(Fading):
        steps = 0

        def forward(self, past):
            self.steps += 1
            if self.steps in (5, 20):
                gc.collect()
                alive[self.steps] = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
            return super().forward(past)

    test(data=sequences(count=80), model=Watched())
    assert alive[20] <= alive[5] + 2  # 14 measurements a step are kept


def test_fingerprints_are_those_of_the_frames_in_8_bits_whatever_holds_them():
    frames = torch.randint(256, (6, 2, 3, 8, 8)) / 255
    numbers = fingerprints(frames)
    assert len(set(numbers.tolist())) == 6
    assert torch.equal(fingerprints(frames.half()), numbers)
    assert torch.equal(fingerprints(frames + 1e-4), numbers)
    assert torch.equal(fingerprints(frames.to(memory_format=torch.channels_last_3d)), numbers)
    assert not torch.equal(fingerprints(frames.reshape(6, 3, 2, 8, 8)), numbers)
    frames[3, 1, 2, 7, 7] = 1 - frames[3, 1, 2, 7, 7]
    assert (fingerprints(frames) != numbers).tolist() == [False, False, False, True, False, False]


def test_sequences_that_occur_twice_are_matched_in_order():
    ours, theirs = match(np.array([5, 7, 5, 9, 5]), np.array([5, 8, 9, 5]))
    assert list(zip(ours.tolist(), theirs.tolist())) == [(0, 0), (2, 3), (3, 2)]
