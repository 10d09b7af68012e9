"""The parts of benchmarks/gpu.py run at toy size, are done once, and fail one by one."""

import json
import sys

import pytest

from benchmarks import gpu


def results(folder) -> dict:
    return {path.stem: json.loads(path.read_text())["result"] for path in folder.glob("*.json")}


def test_parts_are_done_once_and_written_as_they_come(tmp_path, capsys):
    flags = ["--out", str(tmp_path), "--device", "cpu", "--toy", "--only", "metrics", "tests"]
    assert gpu.run(flags) == 0
    found = results(tmp_path)
    assert found["metrics"]["found"]["sequences"] == 20
    assert found["tests"]["found"]["tests"] > 0
    assert "passed" in (tmp_path / "log.txt").read_text()
    assert gpu.run(flags) == 0
    assert capsys.readouterr().out.count("done before") == 2


def test_a_part_that_fails_is_told_and_tried_again_and_the_others_run(tmp_path, monkeypatch, capsys):
    tries = []

    def broken(measurement: gpu.Measurement) -> dict:
        tries.append(1)
        if len(tries) == 1:
            measurement.call(sys.executable, "-c", "raise SystemExit(3)")
        return {"tries": len(tries)}

    monkeypatch.setattr(gpu, "PARTS", {"first": (broken, 1), "second": (lambda session: {"answer": 42}, 1)})
    flags = ["--out", str(tmp_path), "--device", "cpu"]
    assert gpu.run(flags) == 1
    assert not results(tmp_path)["first"]["ok"]
    assert "exit code 3" in capsys.readouterr().out
    assert gpu.run(flags) == 0
    assert {name: result["found"] for name, result in results(tmp_path).items()} == {
        "first": {"tries": 2},
        "second": {"answer": 42},
    }


def test_a_part_ends_when_its_minutes_are_over(tmp_path, monkeypatch):
    monkeypatch.setattr(
        gpu, "PARTS", {"endless": (lambda s: s.call(sys.executable, "-c", "import time; time.sleep(60)"), 1 / 60)}
    )
    assert gpu.run(["--out", str(tmp_path), "--device", "cpu"]) == 1
    found = results(tmp_path)["endless"]
    assert "out of time" in found["error"]
    assert found["seconds"] < 20


def test_the_list_names_every_part(capsys):
    assert gpu.run(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(gpu.PARTS)


@pytest.mark.parametrize("flags", [[], ["--out", "x", "--only", "nonsense"]], ids=str)
def test_flags_that_make_no_sense_are_refused(flags):
    with pytest.raises(SystemExit) as stop:
        gpu.run(flags)
    assert stop.value.code == 2
