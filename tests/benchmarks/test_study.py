import json
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY_FLAGS
from scipy.stats import ttest_rel

import main
from benchmarks import study, study_report
from benchmarks.studies import STUDIES, Study, Variant
from benchmarks.variants import CHANGES, LOSSES

QUICK = " ".join([*TINY_FLAGS, "--epochs 1 --epoch_size 8 --precision fp32"])


def row(variant: str, seed: int, mse: float) -> dict:
    scores = {"mse": mse, "mae": 1.0, "ssim": 0.5, "psnr": 15.0}
    return {
        "variant": variant,
        "seed": seed,
        "test": scores,
        "validation": scores,
        "minutes": 2.0,
        "date": "2026-11-25T20:24:27+00:00",
        "git_commit": f"{'0123456789' * 4}-dirty",
        "multiply_adds": 4e8,
    }


def test_every_study_names_changes_that_there_are_and_no_run_twice():
    for one in STUDIES.values():
        for variant in one.variants:
            assert all(name in CHANGES or name in LOSSES for name in variant.changes)
        keys = [study.Run(one, variant, seed).key for variant in one.variants for seed in one.seeds]
        assert len(set(keys)) == len(keys)


def test_a_run_is_another_where_the_preset_is_another_and_the_same_however_it_is_written(monkeypatch):
    def key(flags: str, study_flags: str = "--dataname digits --epochs 20") -> str:
        return study.Run(Study("?", study_flags, [Variant("it", flags)]), Variant("it", flags), 1).key

    first = key("")
    assert key("--batch_size 4") == first  # the preset's own
    assert key("--epochs 20", "--dataname digits") == first
    assert key("--num_workers 2") == first
    assert key("--lr 0.5") != first
    monkeypatch.setitem(study.PRESETS, "digits", study.PRESETS["digits"] | {"hid_S": 16})
    assert key("") != first


def test_the_interval_is_that_of_a_paired_t_test():
    ours, theirs = [110.0, 112.5, 109.1, 111.0], [113.0, 113.5, 112.1, 116.0]
    differences = [a - b for a, b in zip(ours, theirs)]
    low, high = ttest_rel(ours, theirs).confidence_interval()
    mean = statistics.mean(differences)
    assert study_report.interval(differences) == pytest.approx(high - mean)
    assert study_report.interval(differences) == pytest.approx(mean - low)
    assert study_report.interval([1.0]) == float("inf")


def test_the_table_pairs_seeds_and_leaves_out_what_has_not_run():
    question = Study("?", "", [Variant("first"), Variant("second"), Variant("never")])
    rows = [row("first", s, m) for s, m in ((1, 10.0), (2, 20.0), (3, 99.0))]
    rows += [row("second", s, m) for s, m in ((2, 21.0), (1, 13.0))]
    lines = study_report.table(question, rows).splitlines()
    assert len(lines) == 4
    second = lines[3].split(" | ")
    assert second[1] == "2"  # seeds
    assert second[4].startswith("17.0 (5.7), +2.0 ± ")  # 13 - 10 and 21 - 20


def test_a_study_runs_what_is_missing_and_only_that(tmp_path, monkeypatch, capsys):
    small = Study("Which?", QUICK, [Variant("plain"), Variant("no loss", changes=["mse"])], (1,), minutes=0.01)
    monkeypatch.setitem(STUDIES, "small", small)  # a box of minutes: the pace of an epoch is measured first
    argv = ["small", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path)]
    assert study.run([*argv, "--dry_run"]) == 0
    assert capsys.readouterr().out.count("variants.py") == 2
    assert study.run([*argv, "--only", "no loss"]) == 0
    kept = json.loads((tmp_path / "study_small.json").read_text())["runs"]
    assert [r["variant"] for r in kept] == ["no loss"]
    assert kept[0]["git_commit"]
    seconds = json.loads((next((tmp_path / "runs").glob("pace-no_loss-1-*")) / "metrics.jsonl").read_text())["seconds"]
    assert kept[0]["epochs"] == max(1, round(0.6 / seconds))
    assert (tmp_path / "study_small.png").stat().st_size > 5000
    # A run whose result is kept needs no folder; one that has ended is taken up from its folder.
    (tmp_path / "study_small.json").unlink()
    monkeypatch.setattr(study, "train_missing", lambda missing, *_: pytest.fail(str(missing)))
    assert study.run([*argv, "--only", "no loss"]) == 0
    tested = json.loads((next((tmp_path / "runs").glob("no_loss-1-*")) / "test.json").read_text())
    assert "variants.py mse -- --dataname" in tested["measured_on"]["command"]
    again = json.loads((tmp_path / "study_small.json").read_text())["runs"][0]
    assert again["test"]["mse"] == tested["strict"]["model"]["mse"]["mean"]


def test_a_run_that_another_study_has_is_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setitem(STUDIES, "first", Study("?", QUICK, [Variant("slow", "--lr 1e-3")], seeds=(1, 2)))
    monkeypatch.setitem(STUDIES, "second", Study("?", QUICK + " --lr 1e-3", [Variant("as it is")], seeds=(1, 2)))
    runs = {seed: study.Run(STUDIES["first"], STUDIES["first"].variants[0], seed) for seed in (1, 2)}
    rows = [row("slow", seed, 10.0 + seed) | {"key": run.key} for seed, run in runs.items()]
    (tmp_path / "study_first.json").write_text(json.dumps({"runs": rows[:1]}))
    trained = []

    def train(missing, *_):
        trained.extend(missing)
        return SimpleNamespace(failed=[], stopped=False)

    monkeypatch.setattr(study, "train_missing", train)
    argv = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path)]
    assert study.run(["second", *argv]) == 0
    assert [(run.seed, run.key) for run in trained] == [(2, runs[2].key)]  # seed 1 is the first study's
    assert [r["variant"] for r in json.loads((tmp_path / "study_second.json").read_text())["runs"]] == ["as it is"]


def test_a_run_that_fails_is_named_and_stops_no_other(tmp_path, monkeypatch, capsys):
    wrong = Study("Which?", QUICK, [Variant("wrong", "--hid_S 7")], seeds=(1,))
    monkeypatch.setitem(STUDIES, "wrong", wrong)
    assert study.run(["wrong", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path)]) == 1
    assert "failed: wrong-1-" in capsys.readouterr().err


def test_a_box_of_minutes_holds_as_many_epochs_as_the_pace_allows(tmp_path):
    boxed = study.Run(Study("?", QUICK, [Variant("it")], minutes=2.0), Variant("it"), 1)
    name, command = boxed.step(tmp_path, ["--device", "cpu"])
    assert name == f"pace-{boxed.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "seconds": 7.0}) + "\n")
    name, command = boxed.step(tmp_path, ["--device", "cpu"])
    assert name == boxed.name
    assert main.parse(command[command.index("--") + 1 :])[2]["epochs"] == 17  # 120 / 7


def test_a_stop_while_the_pace_is_measured_starts_nothing_more(tmp_path, monkeypatch):
    boxed = study.Run(Study("?", QUICK, [Variant("it")], minutes=1.0), Variant("it"), 1)
    started, launch = [], study.Pool.launch

    def stop_at_once(pool, command, name):
        pool.stopped = True
        started.append(command)
        return launch(pool, [sys.executable, "-c", ""], name)

    monkeypatch.setattr(study.Pool, "launch", stop_at_once)
    study.train_missing([boxed], SimpleNamespace(workers=1, runs=tmp_path, data_root="data"), done=pytest.fail)
    assert len(started) == 1


def test_a_variant_that_there_is_not_is_refused_and_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(STUDIES, "one", Study("?", QUICK, [Variant("it")], seeds=(1,)))
    monkeypatch.setitem(STUDIES, "two", Study("?", QUICK, [Variant("that")], seeds=(1,)))
    argv = ["--output", str(tmp_path), "--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as stop:
        study.run(["one", "--only", "typo", *argv])
    assert stop.value.code == 2
    assert "--only typo" in capsys.readouterr().err
    key = study.Run(STUDIES["one"], STUDIES["one"].variants[0], 1).key
    (tmp_path / "study_one.json").write_text(json.dumps({"runs": [row("it", 1, 9.0) | {"key": key}]}))
    assert study.run(["two", "--dry_run", *argv]) == 0
    assert not (tmp_path / "study_two.json").exists()


def test_runs_of_other_commits_and_of_other_settings_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(STUDIES, "one", Study("?", QUICK, [Variant("it")], seeds=(1, 2)))
    key = study.Run(STUDIES["one"], STUDIES["one"].variants[0], 1).key
    rows = [row("it", 1, 9.0) | {"key": key}, row("it", 2, 9.0) | {"key": "of before"}]
    (tmp_path / "study_one.json").write_text(json.dumps({"runs": rows}))
    assert study.run(["one", "--report", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "1 runs of" in told
    assert "Runs of other commits: 0123456-dirty." in told


@pytest.mark.parametrize("path", sorted(study.RESULTS.glob("study_*.json")), ids=lambda path: path.stem)
def test_the_tables_of_the_docs_are_those_of_the_results(path):
    docs, name = Path(__file__).parents[2] / "docs/results.md", path.stem.removeprefix("study_")
    assert study_report.table(STUDIES[name], study.read_rows(path)) in docs.read_text()
