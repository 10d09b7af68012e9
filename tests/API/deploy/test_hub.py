"""Models in folders and on a hub: the same predictions in one line, and one line where they cannot be had."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_FLAGS
from full_disk import small_files
from hub_server import TOKEN, Hub
from huggingface_hub import ModelCard

import core
import main
from API import UserError
from API.datasets import digits
from API.deploy.export import write_export
from API.deploy.hub import in_words, repository
from API.evaluation import figures
from API.run.checkpoint import load_checkpoint, save_checkpoint
from DFDNet import DFDNet

BEST = "results/digits/checkpoints/best.pth"
FILES = {"model.safetensors", "config.json", "README.md"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a tiny run in results/digits, tested under two protocols, and its model exported to exported/."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(digits, "SEQUENCES", {"train": 8, "val": 4, "test": 5})
        patch.setattr(figures, "save_figure", lambda figure, path: path.touch())
        where = ["--device", "cpu", "--precision", "fp32"]
        main.run([*TINY_FLAGS, "--batch_size", "4", "--epochs", "1", "--protocol", "strict", "openstl", *where])
        main.run(["export", "--ckpt", BEST, "--output", "exported"])
    return folder


@pytest.fixture
def here(run, monkeypatch):
    """In that folder."""
    monkeypatch.chdir(run)
    return run


def video() -> np.ndarray:
    return np.random.default_rng(0).random((6, 32, 32), dtype=np.float32)


def test_a_folder_holds_the_model_for_both_ways_to_load_it(here):
    expected = core.load_predictor(BEST, "cpu", "fp32")(video(), 9)
    assert (core.load_predictor("exported", "cpu", "fp32")(video(), 9) == expected).all()
    weights = load_checkpoint(BEST)["model"]
    model = DFDNet.from_pretrained("exported", strict=True)
    assert not model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert {path.name for path in (here / "exported").iterdir()} == FILES
    assert not list(here.glob(".partial*"))


def test_flags_go_along_and_what_tells_of_this_machine_does_not(here):
    flags, published = load_checkpoint(BEST)["config"], json.loads((here / "exported/config.json").read_text())
    assert {name: published[name] for name in ("dataname", "hid_S", "COF", "lr", "epochs", "resize")} == {
        name: flags[name] for name in ("dataname", "hid_S", "COF", "lr", "epochs", "resize")
    }
    assert load_checkpoint("exported")["config"] == load_checkpoint("exported/model.safetensors")["config"] == published
    assert not published.keys() & {"data_root", "cache_dir", "res_dir", "output", "ckpt", "device"}
    for name in ("config.json", "README.md"):
        assert str(here) not in (here / "exported" / name).read_text()


def test_the_card_s_scores_are_those_of_the_test_of_these_weights(here):
    card = ModelCard.load(here / "exported/README.md")
    test = json.loads((here / "results/digits/test.json").read_text())
    told = {(r.metric_name, r.metric_value) for r in card.data.eval_results}
    assert told == {
        (f"{metric.upper()} ({protocol})", round(score["mean"], 6))
        for protocol in ("strict", "openstl")
        for metric, score in test[protocol]["model"].items()
    }
    assert len(told) == 8
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "dfdnet")
    assert {"digits", "video-prediction"} <= set(card.data.tags)
    copied = test["strict"]["copy_last"]["mse"]
    assert f"| copy last | {copied['mean']:.4g} ({copied['standard_error']:.2g}) |" in card.text
    assert 'DFDNet.from_pretrained("exported")' in card.text


def test_no_scores_are_claimed_for_other_weights(here, tmp_path):
    state = load_checkpoint(BEST)
    other = here / "results/digits/checkpoints/other.pth"
    save_checkpoint(other, state | {"model": {name: value * 1 for name, value in state["model"].items()}, "epoch": 7})
    main.run(["export", "--ckpt", str(other), "--output", str(tmp_path / "other")])
    card = ModelCard.load(tmp_path / "other/README.md")
    assert card.data.eval_results is None
    assert "No test of these weights" in card.text


def test_no_scores_are_claimed_for_these_weights_in_another_model(here, tmp_path):
    main.run(["export", "--ckpt", BEST, "--output", str(tmp_path / "other"), "--COF", "0.5"])
    assert ModelCard.load(tmp_path / "other/README.md").data.eval_results is None


def test_a_folder_that_is_there_is_left_as_it_is(here):
    before = {path: path.read_bytes() for path in (here / "exported").iterdir()}
    with pytest.raises(UserError, match="--output exported: is there already; name a new folder"):
        main.run(["export", "--ckpt", BEST, "--output", "exported"])
    assert before == {path: path.read_bytes() for path in (here / "exported").iterdir()}


def test_a_full_disk_leaves_no_folder(tmp_path):
    config = dict(ckpt="none.pth", dataname="digits", in_shape=TINY["in_shape"], out_shape=TINY["out_shape"])
    with small_files(10_000), pytest.raises(UserError, match="--output: cannot write"):
        write_export(DFDNet(**TINY), TINY["in_shape"], config, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("release", [False, True])
def test_what_the_model_saves_itself_is_a_checkpoint_too(tmp_path, release):
    """In release mode two names have one tensor, of which safetensors keeps one."""
    model = DFDNet(**TINY | dict(COF=0.4), release=release).eval()
    model.save_pretrained(tmp_path / "saved")
    state = load_checkpoint(tmp_path / "saved")
    assert state["config"]["COF"] == 0.4
    expected = model.state_dict()
    assert state["model"].keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state["model"].items())
    predictor = core.load_predictor(tmp_path / "saved", "cpu", "fp32")
    past = torch.rand(1, *TINY["in_shape"])
    with torch.no_grad():
        assert torch.allclose(predictor.model(past), model(past), atol=1e-5)


DAMAGES = {
    "no flags": (lambda folder: (folder / "config.json").unlink(), "broken: holds no config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "broken: is a folder"),
    "flags cut": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: damaged"),
    "flags of a list": (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json: damaged"),
    "weights cut": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99),
        r"model\.safetensors: not a safetensors file of ours",
    ),
    "another data set": (
        lambda folder: (folder / "config.json").write_text(json.dumps(TINY_CONFIG | {"dataname": "waves"})),
        "--dataname waves: unknown",
    ),
}
TINY_CONFIG = {**TINY, "layer_config": [1, 1, 1, 1]}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_told_in_one_line(here, tmp_path, damage):
    change, words = DAMAGES[damage]
    shutil.copytree("exported", tmp_path / "broken")
    change(tmp_path / "broken")
    with pytest.raises(UserError, match=words) as error:
        core.load_predictor(tmp_path / "broken", "cpu", "fp32")
    assert "\n" not in str(error.value)


def test_names_on_the_hub():
    assert repository("hf://me/model") == ("me/model", None)
    assert repository("hf://me/my.model-2@refs/pr/1") == ("me/my.model-2", "refs/pr/1")
    for name in ("hf://model", "hf://", "hf://a/b/c", "hf://a/b@", "hf:///b"):
        with pytest.raises(UserError, match="write hf://owner/name or hf://owner/name@revision"):
            repository(name)


def test_a_full_cache_is_not_taken_for_a_lost_network():
    assert in_words(OSError(28, "No space left on device", "/cache/x")) == "No space left on device (/cache/x)"


# Against a hub on loopback, in processes of their own: huggingface_hub reads the environment when it is imported ------


def python(code: str, environment: dict, cwd) -> list[str]:
    """The lines that a program prints; what goes to stderr is an error."""
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=cwd, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


USE = """
import numpy as np, main
from API.datasets import digits
from API.evaluation import figures
from core import load_predictor
digits.SEQUENCES = {"train": 8, "val": 4, "test": 5}
figures.save_figure = lambda figure, path: path.touch()
name, where = "hf://me/tiny.v1", ["--device", "cpu", "--precision", "fp32"]
main.run(["export", "--ckpt", BEST, "--output", name])
main.run(["predict", "--ckpt", name, "--input", "in.npy", "--output", "new.npy", *where])
np.save("predicted.npy", load_predictor(name + "@main", "cpu", "fp32")(np.load("in.npy")))
main.run(["export", "--ckpt", name, "--output", "copy.safetensors"])
main.run(["test", "--ckpt", name + "@main", *where])
main.run(["--dataname", "digits", "--init", name, "--batch_size", "4", "--epochs", "1", *where])
"""

AGAIN = """
import torch
from API.run.checkpoint import load_checkpoint
again, before = (load_checkpoint(name)["model"] for name in ("hf://me/tiny.v1", "copy.safetensors"))
print(all(torch.equal(again[name], before[name]) for name in before))
"""


def test_a_model_on_the_hub_serves_every_mode_as_its_checkpoint_does(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", (video() * 255).astype(np.uint8))
    with Hub() as hub:
        environment = hub.environment(tmp_path, HF_TOKEN=TOKEN)
        told = python(USE.replace("BEST", repr(str(run / BEST))), environment, tmp_path)
        again = python(AGAIN, environment | {"HF_HUB_OFFLINE": "1"}, tmp_path)
    files = hub.repos["me/tiny.v1"]["main"]
    assert told[0].startswith("hf://me/tiny.v1: http://127.0.0.1:")
    assert set(files) == FILES
    assert b'DFDNet.from_pretrained("me/tiny.v1")' in files["README.md"]
    assert b"--ckpt hf://me/tiny.v1 --input" in files["README.md"]
    expected = core.load_predictor(run / BEST, "cpu", "fp32")(np.load("in.npy"))
    assert (np.load("predicted.npy") == expected).all()
    assert (np.load("new.npy") == expected).all()
    there = json.loads((tmp_path / "results/tiny.v1@main/test.json").read_text())
    ours = json.loads((run / "results/digits/test.json").read_text())
    scores = [{m: found["mean"] for m, found in test["strict"]["model"].items()} for test in (there, ours)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)  # another process may add up in another order
    assert there["checkpoint"] == there["measured_on"]["checkpoint"] == "hf://me/tiny.v1@main"
    assert there["measured_on"]["weights"]
    assert "hf://me/tiny.v1: all 277 tensors fit" in told
    assert json.loads((tmp_path / "results/digits/config.json").read_text())["flags"]["in_shape"] == [4, 1, 32, 32]
    assert again == ["True"]  # from the cache


MIXIN = """
import torch
from DFDNet import DFDNet
torch.manual_seed(0)
model = DFDNet(in_shape=(4, 1, 32, 32), out_shape=(4, 1, 32, 32), hid_S=8, layer_config=(1, 1, 1, 1), COF=0.4)
model.push_to_hub("me/pushed")
same = DFDNet.from_pretrained("me/pushed").state_dict()
print(all(torch.equal(value, same[name]) for name, value in model.state_dict().items()))
from API.run.checkpoint import load_checkpoint
print(load_checkpoint("hf://me/pushed")["config"]["COF"])
"""


def test_push_to_hub_and_from_pretrained_of_the_model_itself(tmp_path):
    with Hub() as hub:
        told = python(MIXIN, hub.environment(tmp_path, HF_TOKEN=TOKEN, HF_HUB_DISABLE_PROGRESS_BARS="1"), tmp_path)
    assert told == ["True", "0.4"]


REFUSALS = {  # name on the hub: what is said of it
    "me/none": "there is no such repository, or it is private; check the name, or set HF_TOKEN",
    "me/model@v9": "there is no such revision",
    "me/private": "needs a valid token; set HF_TOKEN",
    "me/gated": "its owner grants access on request",
    "me/forbidden": "the token does not have the right to",
    "me/down": "the hub answers 500",
    "me/a--b": "Cannot have -- or ..",
    "me": "write hf://owner/name",
}
ASK = """
import sys
from pathlib import Path
from API import UserError
from API.deploy.hub import local, upload
Path("up").mkdir(exist_ok=True)
Path("up/config.json").write_text("{}")
to = [lambda name=name: upload(Path("up"), f"hf://me/{name}") for name in ("new", "other@dev")]
for ask in (*(lambda name=name: local(f"hf://{name}") for name in NAMES), *to):
    try:
        print(ask())
    except UserError as error:
        print(error)
"""


def test_what_the_hub_refuses_is_one_line_that_names_the_model(tmp_path):
    names = list(REFUSALS)
    with Hub() as hub:
        hub.repos["me/model"] = {"main": {"config.json": b"{}"}}
        hub.refused = {"me/private": (401, ""), "me/gated": (403, "GatedRepo"), "me/forbidden": (403, ""),
                       "me/down": (500, "")}  # fmt: skip
        environment = hub.environment(tmp_path)
        told = python(ASK.replace("NAMES", repr(names)), environment, tmp_path)
        offline = python(ASK.replace("NAMES", "['me/model']"), environment | {"HF_HUB_OFFLINE": "1"}, tmp_path)
        python(ASK.replace("NAMES", "[]"), environment | {"HF_TOKEN": TOKEN}, tmp_path)
        assert hub.repos.keys() == {"me/model", "me/new"}  # none is made for the branch of another
    away = python(ASK.replace("NAMES", "['me/model']"), environment, tmp_path)
    assert len(told) == len(names) + 2
    for line, (name, words) in zip(told, REFUSALS.items()):
        assert line.startswith(f"hf://{name}: {words}")
    assert told[-2].startswith("--output hf://me/new: needs a valid token; set HF_TOKEN")
    assert told[-1].startswith("--output hf://me/other@dev: there is no such repository")
    outputs = ["--output hf://me/new", "--output hf://me/other@dev"]
    assert [line.partition(": ")[0] for line in offline] == ["hf://me/model", *outputs]
    assert all("HF_HUB_OFFLINE is set" in line for line in offline)
    assert [line.partition(": cannot reach http://127.0.0.1:")[0] for line in away] == [
        "hf://me/model",
        *outputs,
    ]
