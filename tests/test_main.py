"""The command line as a user meets it: `python main.py …` in a process of its own."""

import inspect
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from conftest import TINY_FLAGS

import main
from API.presets import PRESETS
from DFDNet import DFDNet

REPO = Path(__file__).parents[1]


def command(*flags: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name != "DISPLAY"} | environment
    return subprocess.run(
        [sys.executable, str(REPO / "main.py"), *flags], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


def test_help_needs_no_torch_and_shows_the_values_of_the_preset(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError")  # found first
    result = command("-h", "--dataname", "digits", cwd=tmp_path, COLUMNS="200", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0
    for flag, value in PRESETS["digits"].items():
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        line = next(line for line in result.stdout.splitlines() if line.strip().startswith(f"--{flag} "))
        assert line.endswith(f"({shown})")
    for mode in main.MODES:
        assert mode == "train" or f"\n  {mode} " in result.stdout


@pytest.mark.parametrize("mode", main.MODES)
def test_every_flag_of_a_mode_has_help_in_a_line_and_the_values_are_all_there(mode, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        main.parse([mode, "-h"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 110
    assert not [line for line in lines if len(line) > 120]
    parser = main.Parser(mode, PRESETS["mmnist"])
    assert all(action.help for action in parser._actions)
    assert all(action.metavar or action.choices or action.nargs == 0 for action in parser._actions)


def test_a_flag_that_a_mode_does_not_use_is_refused_by_name(capsys):
    for argv, words in (
        (["test", "--ckpt", "a.pth", "--epochs", "3"], "test takes no --epochs; it is a flag of train"),
        (["export", "--data_root=x"], "export takes no --data_root=x; it is a flag of train, test, explain, data"),
        (["compare", "results/a", "--seed", "1"], "compare takes no --seed"),
        (["--nonsense"], "train takes no --nonsense"),
        (["test", "results/a"], "only compare takes runs"),
    ):
        with pytest.raises(SystemExit) as stop:
            main.parse(argv)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err.splitlines()[-1]


def test_without_a_mode_it_trains():
    assert main.parse(["--epochs", "3"]) == main.parse(["train", "--epochs", "3"])


def test_a_model_flag_is_an_argument_of_the_model():
    """The signature of DFDNet is the one place that says what its arguments are."""
    known = {action.dest for action in main.Parser("train", {})._actions}
    assert set(inspect.signature(DFDNet).parameters) <= known
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in PRESETS["mmnist"].items()} | {
        name: p.default for name, p in inspect.signature(DFDNet).parameters.items() if name != "release"
    } == {name: tuple(v) if isinstance(v, list) else v for name, v in PRESETS["mmnist"].items()}


def test_an_explicit_flag_wins_over_the_preset():
    _, defaults, given = main.parse(["--dataname", "digits", "--lr", "0.5"])
    assert defaults["hid_S"] == PRESETS["digits"]["hid_S"]
    assert {**defaults, **given}["lr"] == 0.5


def test_the_default_is_the_paper_s_recipe():
    mode, defaults, given = main.parse([])
    assert (mode, given) == ("train", {})
    recipe = dict(
        dataname="mmnist", lr=0.01, batch_size=16, epochs=2000, seed=1, in_shape=[10, 1, 64, 64], hid_S=64, layer=4,
        out_shape=[10, 1, 64, 64], kernel_size=[3, 3, 3, 3], layer_config=[1, 8, 2, 8], groups=2, COF=0.3125,
    )  # fmt: skip
    assert defaults | recipe == defaults


def test_without_the_data_one_line_says_how_to_get_it(tmp_path):
    result = command(cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    for words in ("train-images-idx3-ubyte.gz", "bash data/moving_mnist/download_mmnist.sh", "--dataname digits"):
        assert words in result.stderr
    assert not (tmp_path / "results").exists()


MISTAKES = {
    "test without a checkpoint": (["test"], "--ckpt"),
    "missing checkpoint": (["test", "--ckpt", "none.pth"], "none.pth"),
    "text for a checkpoint": (["test", "--ckpt", "text.pth"], "text.pth"),
    "folder for a checkpoint": (["test", "--ckpt", "run"], "run/checkpoints/best.pth"),
    "checkpoint with more than tensors": (["test", "--ckpt", "objects.pth"], "(fractions.Fraction)"),
    "checkpoint of something else": (["test", "--ckpt", "other.pth"], "other.pth"),
    "release checkpoint of something else": (["test", "--release", "--ckpt", "other.pth"], "other.pth"),
    "flags that do not fit": ([*TINY_FLAGS, "--groups", "3"], "--groups"),
    "odd frame size": (["--dataname", "digits", "--in_shape", "10", "1", "65", "64"], "--in_shape"),
    "resume without a run": ([*TINY_FLAGS, "--resume"], "--resume"),
    "results in a file": ([*TINY_FLAGS, "--res_dir", "text.pth"], "--res_dir"),
    "no such GPU": (
        [*TINY_FLAGS, "--device", "cuda", "--gpu", "99"],
        "cuda" if not torch.cuda.is_available() else "99",
    ),
    "two ways to say where to predict from": (
        ["predict", "--ckpt", "text.pth", "--input", "in.npy", "--output", "out.npy", "--start", "0", "--every", "2"],
        "--start and --every both say where to predict from",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_line_and_code_2(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({"objects": Fraction(1, 2)}, tmp_path / "objects.pth")
    (tmp_path / "run").mkdir()
    flags, words = MISTAKES[mistake]
    assert main.main(flags) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith("error: ")
    assert words in error
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataname", "nonsense"], "nonsense"),
        (["--batch_size", "0"], "--batch_size"),
        (["--epochs", "-1"], "--epochs"),
        (["--lr", "0"], "--lr"),
        (["--lr", "nan"], "--lr"),
        (["--num_workers", "-1"], "--num_workers"),
        (["--in_shape", "10", "1", "64"], "--in_shape"),
        (["--epoch=3"], "--epoch"),  # no guessing of abbreviations
        (["dance"], "dance"),
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_refused_by_name(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main.parse(flags)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_summary_counts_the_paper_s_model(tmp_path):
    result = command("summary", "--precision", "fp32", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "149,145,513" in result.stdout
    assert "49.09 G" in result.stdout
    for box in ("(encoder)", "(temporal)", "(decoder)", "(branch_r1)", "(stau)", "(dfdu)"):
        assert box in result.stdout
    for choice, most in (("eager", 2000), ("--compile", 450), ("--checkpoint_blocks", 100)):
        (line,) = (line.split() for line in result.stdout.splitlines() if line.startswith(choice))
        assert (line[2], line[4]) == ("MiB", "GiB")
        assert 10 < int(line[1]) < most


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path, capsys):
    """Whatever a researcher's own code raises, be it a ValueError."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py", *TINY_FLAGS, "--epochs", "1"])
    for error in (ValueError("my shapes are wrong"), OSError("mine"), KeyError("name"), RuntimeError("mine")):

        def forward(self, x, error=error):
            raise error

        monkeypatch.setattr("TemporalModule.STAU.forward", forward)
        with pytest.raises(type(error)):
            main.main()


def test_only_training_and_testing_run_in_many_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="predict runs in one process"):
        main.run(["predict"])
