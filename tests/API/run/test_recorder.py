import json
import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch


def state() -> dict:
    return {
        "model": {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)},
        "epoch": 2,
        "config": {"lr": 0.1, "s": [1, 2]},
    }


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    c.save_checkpoint(tmp_path / "a.pth", state())
    loaded = c.load_checkpoint(tmp_path / "a.pth")
    assert torch.equal(loaded["model"].pop("w"), torch.arange(6.0).view(2, 3))
    assert loaded == {"model": {"n": torch.tensor(3)}, "epoch": 2, "config": {"lr": 0.1, "s": [1, 2]}}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    c.save_checkpoint(tmp_path / "a.pth", state())
    before = (tmp_path / "a.pth").read_bytes()

    def full_disk(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(ValueError, match=r"a\.pth .No space left on device"):
        c.save_checkpoint(tmp_path / "a.pth", state())
    assert (tmp_path / "a.pth").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB"],))


@pytest.mark.parametrize(
    "how", ["missing", "cut", "flipped", "text", "empty", "a list", "pickle", "zipped pickle", "folder"]
)
def test_what_is_no_sound_checkpoint_is_refused_in_one_line_and_never_run(tmp_path, monkeypatch, how):
    monkeypatch.setenv("BOMB", str(tmp_path / "the bomb went off"))
    path = tmp_path / "a.pth"
    c.save_checkpoint(path, state())
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-500])
    elif how == "flipped":  # a bit of a weight
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data/0"))
            at = data.index(archive.read(name))
        path.write_bytes(data[: at + 5] + bytes([data[at + 5] ^ 1]) + data[at + 6 :])
    elif how == "text":
        path.write_text("hello")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a list":
        torch.save([1, 2], path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    elif how == "zipped pickle":
        torch.save({"config": {}, "model": Bomb()}, path)
    elif how == "folder":
        path.unlink()
        path.mkdir()
    with pytest.raises(ValueError, match=r"a\.pth") as error:
        c.load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "the bomb went off").exists()


def test_random_states_come_back(tmp_path):
    def draw():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    draw()
    c.save_checkpoint(tmp_path / "a.pth", c.random_states())
    expected = draw()
    draw()
    c.restore_random_states(c.load_checkpoint(tmp_path / "a.pth"))
    assert draw() == expected


def test_a_run_never_overwrites_another_by_accident(tmp_path):
    first = r.Recorder(tmp_path / "run")
    first.epoch({"epoch": 1})
    c.save_checkpoint(first.checkpoints / "last.pth", state())
    with pytest.raises(ValueError, match=r"--resume .*--overwrite .*--ex_name"):
        r.Recorder(tmp_path / "run")
    assert r.Recorder(tmp_path / "run", resume=True).history() == [{"epoch": 1}]
    assert r.Recorder(tmp_path / "run", enter=True).history() == [{"epoch": 1}]
    assert r.Recorder(tmp_path / "run", overwrite=True).history() == []
    assert not list(first.checkpoints.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="--res_dir: cannot write to"):
        r.Recorder(tmp_path / "file" / "run")


def test_epochs_that_are_trained_again_are_recorded_once(tmp_path):
    recorder = r.Recorder(tmp_path)
    for epoch in (1, 2, 3):
        recorder.epoch({"epoch": epoch})
    recorder.forget_after(2)
    recorder.epoch({"epoch": 3})
    assert [record["epoch"] for record in recorder.history()] == [1, 2, 3]


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        r.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_config_says_what_it_ran_on(tmp_path):
    recorder = r.Recorder(tmp_path)
    recorder.write_config({"lr": 0.1})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["flags"] == {"lr": 0.1}
    assert config["environment"]["torch"] == torch.__version__
    assert "cores" in config["environment"]["cpu"]
