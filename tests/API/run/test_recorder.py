"""The run folder: what it keeps, what it refuses, and what goes with --overwrite."""

import errno
import json
import time
from pathlib import Path

import pytest
import torch

from API import UserError
from API.run.checkpoint import save_checkpoint
from API.run.files import write_json
from API.run.recorder import DOOMED, Recorder, describe_epoch, run_of


def state() -> dict:
    return {"model": {"w": torch.zeros(2)}, "epoch": 1}


def test_a_run_never_overwrites_another_by_accident(tmp_path):
    first = Recorder(tmp_path / "run")
    first.epoch({"epoch": 1})
    save_checkpoint(first.checkpoints / "last.pth", state())
    with pytest.raises(ValueError, match=r"--resume .*--overwrite .*--ex_name"):
        Recorder(tmp_path / "run")
    assert Recorder(tmp_path / "run", resume=True).history() == [{"epoch": 1}]
    assert Recorder(tmp_path / "run", enter=True).history() == [{"epoch": 1}]
    assert Recorder(tmp_path / "run", overwrite=True).history() == []
    assert not list(first.checkpoints.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="--res_dir: cannot write to"):
        Recorder(tmp_path / "file" / "run")


def test_epochs_that_are_trained_again_are_recorded_once(tmp_path):
    recorder = Recorder(tmp_path)
    for epoch in (1, 2, 3):
        recorder.epoch({"epoch": epoch})
    recorder.forget_after(2)
    recorder.epoch({"epoch": 3})
    assert [record["epoch"] for record in recorder.history()] == [1, 2, 3]


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_config_says_what_it_ran_on(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.write_config({"lr": 0.1})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["flags"] == {"lr": 0.1}
    assert config["environment"]["torch"] == torch.__version__
    assert "cores" in config["environment"]["cpu"]


def run_with_results(folder: Path) -> Recorder:
    """A run folder with a file of every kind that a run leaves."""
    recorder = Recorder(folder)
    recorder.write_config({})
    recorder.epoch({"epoch": 1})
    recorder.log("one line")
    save_checkpoint(recorder.checkpoints / "last.pth", state(), [recorder.checkpoints / "best.pth"])
    for name in ("test.json", "scores.npz", "predictions.npz", "bad_batch.npz", "figures/frames.png", "tests/a/b.json",
                 "events.out.tfevents.1", "explain.json"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    return recorder


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_overwrite_leaves_nothing_of_the_old_run(tmp_path):
    run_with_results(tmp_path / "run")
    run_with_results(tmp_path / "run/another")  # --ex_name run/another is a run of its own
    others = {f"another/{name}" for name in files_in(tmp_path / "run/another")}
    recorder = Recorder(tmp_path / "run", overwrite=True)
    assert files_in(tmp_path / "run") == {".lock"} | others
    recorder.log("anew")
    assert "one line" not in (tmp_path / "run/log.txt").read_text()
    assert recorder.figures.is_dir()
    assert recorder.checkpoints.is_dir()


def test_overwrite_removes_nothing_from_a_folder_that_holds_no_run(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/mother.txt").write_text("dear")
    Recorder(tmp_path, overwrite=True)
    assert (tmp_path / "letters/mother.txt").read_text() == "dear"


def test_overwriting_that_was_killed_is_finished_at_the_next_start(tmp_path, monkeypatch):
    run_with_results(tmp_path)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("API.run.recorder.remove_tree", killed)
    with pytest.raises(KeyboardInterrupt):
        Recorder(tmp_path, overwrite=True)
    assert (tmp_path / DOOMED).exists()
    assert not (tmp_path / "checkpoints").exists()  # nothing to resume from
    monkeypatch.undo()
    recorder = Recorder(tmp_path)
    assert files_in(tmp_path) == {".lock"}
    assert recorder.checkpoints.is_dir()


def test_a_run_whose_newest_checkpoint_is_the_previous_one_is_a_run_too(tmp_path):
    recorder = Recorder(tmp_path)
    save_checkpoint(recorder.checkpoints / "last.previous.pth", state())
    with pytest.raises(UserError, match="holds a run already"):
        Recorder(tmp_path)


@pytest.mark.parametrize(
    "torn", [b'{"epoch": 3, "train_lo', b'{"epoch": 3}'[:-1], b"\0\0\0\0", b'{"epoch": 3, "a": "\xc3']
)
def test_a_record_that_was_cut_short_is_left_out_with_one_line(tmp_path, capsys, torn):
    recorder = Recorder(tmp_path)
    for epoch in (1, 2):
        recorder.epoch({"epoch": epoch})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    capsys.readouterr()
    recorder.forget_after(2)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "metrics.jsonl: its last line was cut short" in said[0]
    recorder.epoch({"epoch": 3})
    assert recorder.history() == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]
    recorder.forget_after(3)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("line", ["no JSON", "[1]", '{"loss": 1}', '{"epoch": "x"}', "[" * 100_000])
def test_damage_within_the_records_is_told_with_its_line(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"epoch": 1}}\n{line}\n{{"epoch": 3}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged") as error:
        Recorder(tmp_path).history()
    assert len(str(error.value)) < 500


def test_every_line_of_the_log_has_its_time_and_what_is_only_noted_is_not_printed(tmp_path, capsys):
    recorder = Recorder(tmp_path)
    recorder.log("epoch 1")
    recorder.note("stopped in epoch 2")
    assert capsys.readouterr().out == "epoch 1\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[21:] for line in lines] == ["epoch 1", "stopped in epoch 2"]
    for line in lines:
        time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")


def test_a_name_that_is_no_text_can_be_logged(tmp_path):
    Recorder(tmp_path).note("clip \udcff.avi")
    assert (tmp_path / "log.txt").read_text().endswith("clip \\udcff.avi\n")


@pytest.mark.parametrize(("write", "file"), [
    (lambda recorder: recorder.log("a"), "log.txt"),
    (lambda recorder: recorder.epoch({"epoch": 1}), "metrics.jsonl"),
    (lambda recorder: recorder.write_config({}), "config.json"),
    (lambda recorder: recorder.forget_after(0), "metrics.jsonl"),
])  # fmt: skip
def test_a_full_disk_is_told_in_one_line_that_names_the_file(tmp_path, monkeypatch, write, file):
    recorder = Recorder(tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=rf"cannot write .*{file} \(No space left on device\)"):
        write(recorder)


def test_stages_have_names_in_an_epoch_s_line():
    record = {"train_loss": 2.0, "lr": 0.1, "sequences_per_second": 3.0, "val_loss": 1.0, "val_mse": 9.0}
    numbers = dict(energy_removed=0.0042, threshold_drift=-0.005)
    stages = [{"stage": i, "removed": i / 10, "threshold_moved": i / 100, **numbers} for i in (1, 3)]
    line = describe_epoch(record | {"val_ssim": 0.5, "filter": stages})
    assert "stage 1 removes 10% (0.42% of the energy), thresholds moved 0.010 (-0.005); stage 3 removes 30% " in line


def test_files_say_their_version_and_records_of_older_ones_are_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    recorder = Recorder(tmp_path, resume=True)
    recorder.write_config({"lr": 0.1})
    recorder.epoch({"epoch": 2})
    assert json.loads((tmp_path / "config.json").read_text())["version"] == 1
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1]) == {"version": 1, "epoch": 2}
    assert recorder.history() == [{"epoch": 1}, {"epoch": 2}]


def test_a_checkpoint_is_of_its_run_though_the_folder_of_checkpoints_is_a_link(tmp_path):
    run, elsewhere = tmp_path / "results/a", tmp_path / "scratch"
    elsewhere.mkdir()
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "checkpoints").symlink_to(elsewhere)
    (elsewhere / "best.pth").write_bytes(b"")
    assert run_of(run / "checkpoints/best.pth") == run
    assert run_of(elsewhere / "best.pth") is None
