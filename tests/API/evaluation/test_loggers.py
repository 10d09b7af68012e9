import builtins
import json
import socket

import numpy as np
import pytest
import torch

import main
from API.evaluation import loggers
from API.evaluation.loggers import Loggers, TensorBoard

RECORD = dict(epoch=1, train_loss=3.0, val_loss=2.0, val_mse=5.0, val_ssim=0.5, lr=0.1, waiting=0.2)
RECORD |= {"filter": [{"stage": 1, "removed": 0.3, "threshold_moved": 0.01}]}
TESTED = {"protocols": ["strict"], "strict": {"model": {"mse": {"mean": 7.0}}}}
FLAGS = {"lr": 0.1, "in_shape": [4, 1, 16, 24], "init": None}
EXPECTED = {
    "loss/train": 3.0, "loss/val": 2.0, "metrics/mse": 5.0, "metrics/ssim": 0.5, "training/lr": 0.1,
    "training/waiting": 0.2, "filter/stage1/removed": 0.3, "filter/stage1/threshold_moved": 0.01,
    "test/strict/mse": 7.0,
}  # fmt: skip


def log(names: list[str], folder, epoch: int = 1) -> None:
    shown = torch.rand(4, 1, 16, 24), torch.rand(6, 1, 16, 24), torch.rand(6, 1, 16, 24)
    with Loggers(names, folder, epoch - 1, FLAGS) as some:
        some.epoch(epoch, RECORD, shown)
        some.results(TESTED)


def test_tensorboard_groups_its_numbers_and_has_flags_and_test_scores(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log(["tensorboard"], tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == pytest.approx(EXPECTED)
    assert len(events.Tags()["images"]) == 1
    assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.parametrize(("done", "values"), [(0, [9.0, 9.0, 9.0]), (1, [1.0, 9.0, 9.0])])
def test_tensorboard_hides_the_epochs_that_a_resumed_run_does_again(tmp_path, done, values):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last, value in ((0, 2, 1.0), (done, 3, 9.0)):
        board = TensorBoard(tmp_path, first, {})
        for epoch in range(first, last):
            board.epoch(epoch + 1, {"loss/train": value}, None)
        board.writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == list(zip((1, 2, 3), values))


@pytest.fixture
def wandb(monkeypatch):
    """The package, with a server that cannot be reached."""
    package = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return package


def records_of(folder) -> list:
    """Everything that the offline runs of Weights & Biases hold: protobufs in LevelDB's log format, blocks of 32 KiB of
    chunks with a header of 7 bytes (checksum, length, whole, first, middle or last)."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # as at the end of a process: its service writes everything
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, parts = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
            length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            parts += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                found.append(Record.FromString(parts))
                parts = b""
    return found


def test_wandb_gets_the_same_offline_where_its_server_cannot_be_reached(tmp_path, wandb, capfd):
    log(["wandb"], tmp_path)
    assert "offline" in capfd.readouterr().out
    history, summary = {}, {}
    for record in records_of(tmp_path):
        for kept, items in ((history, record.history.item), (summary, record.summary.update)):
            kept |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
    numbers = {name: value for name, value in (history | summary).items() if name in EXPECTED}
    assert numbers == pytest.approx(EXPECTED)
    assert history["past, truth, prediction, error/_type"] == "image-file"
    config = {item.key: item.value_json for record in records_of(tmp_path) for item in record.run.config.update}
    assert json.loads(config["lr"]) == 0.1


def test_a_resumed_run_goes_on_with_its_id_and_steps(tmp_path, wandb):
    log(["wandb"], tmp_path, 1)
    log(["wandb"], tmp_path, 2)
    records = records_of(tmp_path)
    assert {record.run.run_id for record in records if record.HasField("run")} == {
        (tmp_path / "wandb/id.txt").read_text()
    }
    assert [record.history.step.num for record in records if record.HasField("history")] == [1, 2]


def test_none_and_other_processes_write_nothing(tmp_path):
    for names in (["none"], []):
        log(names, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="--logger none wandb: none goes with no other"):
        main.run(["--dataname", "digits", "--logger", "none", "wandb", "--res_dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_missing_package_is_named_in_one_line(name, module, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(wanted, *rest):
        if wanted == module:
            raise ImportError(wanted)
        return real(wanted, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=rf"--logger {name}: \w+ is not installed: pip install {name}"):
        Loggers([name], tmp_path, 0, {})


def test_a_server_that_listens_is_reached(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        assert loggers.reachable()
    assert not loggers.reachable()


def test_the_picture_is_one_for_all_loggers(tmp_path, monkeypatch):
    seen = []

    class Spy:
        def __init__(self, *_) -> None: ...

        def epoch(self, epoch, numbers, picture) -> None:
            seen.append(picture)

        def results(self, scores) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(loggers, "LOGGERS", {"tensorboard": Spy, "wandb": Spy})
    log(["tensorboard", "wandb"], tmp_path)
    assert seen[0] is seen[1]
    assert seen[0].dtype == np.uint8


def test_a_logger_that_cannot_write_is_left_out_with_one_warning_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    told = []

    class Full:
        def __init__(self, *_):
            told.append("opened")

        def epoch(self, *_):
            raise OSError(28, "No space left on device")

        results = close = epoch

    monkeypatch.setitem(loggers.LOGGERS, "wandb", Full)
    log(["wandb", "tensorboard"], tmp_path)
    printed = capsys.readouterr().out
    assert told == ["opened"]
    assert printed.count("warning: --logger wandb: cannot write") == printed.count("\n") == 1
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_logger_that_cannot_be_opened_is_left_out(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("a file, where a folder should be")
    log(["tensorboard"], tmp_path)
    assert "warning: --logger tensorboard: cannot write" in capsys.readouterr().out
