import json
import sys

import numpy as np
import pytest
import torch
from conftest import TINY_FLAGS
from full_disk import small_files
from PIL import Image
from torch import nn

import core
import main
from API import UserError
from API.datasets import digits
from API.deploy.export import TESTED, export_model, halve, write_export
from API.run.weights import load_safetensors
from DFDNet import DFDNet

SMALL = dict(
    in_shape=(4, 1, 16, 16),
    out_shape=(4, 1, 16, 16),
    hid_S=4,
    layer=2,
    kernel_size=3,
    layer_config=(1, 1),
    segments=(2, 4),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a tiny trained run in results/digits."""
    folder, sequences = tmp_path_factory.mktemp("run"), digits.SEQUENCES
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(digits, "SEQUENCES", {"train": 8, "val": 4, "test": 5})
        main.run([*TINY_FLAGS, "--batch_size", "4", "--epochs", "1", "--device", "cpu", "--precision", "fp32"])
        assert digits.SEQUENCES is not sequences
    return folder


def test_a_pytorch_that_cannot_export_is_told_so_in_one_line(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("unsupported operator\nand a page of text")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(
        ValueError, match=r"model\.pt2: PyTorch .* cannot export it .RuntimeError.; 2\.7 is known to"
    ) as error:
        export_model(Doubling(), (1, 1, 4, 4), tmp_path / "model.pt2")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


modern = pytest.mark.skipif(
    [int(n) for n in torch.__version__.split(".")[:2]] < [int(n) for n in TESTED.split(".")],
    reason="this PyTorch may not be able to export",
)


@modern
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_an_exported_model_computes_the_same_for_any_batch(kind, tmp_path):
    model = DFDNet(**SMALL).eval()
    for module in model.modules():  # running statistics that are not the start's
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    past = torch.rand(5, *SMALL["in_shape"])
    with torch.no_grad():
        expected = model(past)
    path = tmp_path / f"model.{kind}"
    assert max(export_model(model, SMALL["in_shape"], path)) < 1e-4
    if kind == "pt2":
        out = torch.export.load(str(path)).module()(past)
    else:
        import onnxruntime

        out = torch.from_numpy(onnxruntime.InferenceSession(str(path)).run(None, {"past": past.numpy()})[0])
    assert (out - expected).abs().max() < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


class Doubling(torch.nn.Module):
    def forward(self, past):
        return past * 2


@modern
def test_what_deviates_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("API.deploy.export.onnx_runner", lambda path: lambda past: past + 0.001)
    with pytest.raises(ValueError, match="deviates"):
        export_model(Doubling(), (2, 1, 4, 4), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@modern
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_full_disk_is_said_in_one_line(kind, tmp_path):
    said = rf"--output .*model\.{kind}: cannot be written \(File too large\)$"
    with small_files(300), pytest.raises(UserError, match=said):
        export_model(Doubling(), (2, 1, 4, 4), tmp_path / f"model.{kind}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_before_the_model_is_exported(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("API.deploy.export.export_model", None)
    with pytest.raises(UserError, match=rf"model\.onnx: needs the package {package}; pip install {package}$"):
        write_export(Doubling(), (2, 1, 4, 4), {}, tmp_path / "model.onnx")


def exported_as(monkeypatch, run):
    """Exporting gives a program that computes run(model, past)."""

    def export_program(model, example, path):
        path.touch()
        return lambda past: run(model, past)

    monkeypatch.setattr("API.deploy.export.export_program", export_program)


@pytest.mark.parametrize(
    ("batch", "off", "kept"),
    [(1, 0.01, True), (1, 0.05, False), (1, float("nan"), False), (4, 0.00005, True), (4, 0.001, False)],
)
def test_a_sequence_on_an_edge_may_deviate_more_than_the_others(batch, off, kept, tmp_path, monkeypatch):
    exported_as(monkeypatch, lambda model, past: model(past) + off * (len(past) == batch))
    path = tmp_path / "model.pt2"
    if kept:
        assert f"none by more than {off:.1e}" in write_export(Doubling(), (2, 1, 4, 4), {}, path)
    else:
        with pytest.raises(ValueError, match=f"deviates by {off:.2g} from the model; not kept"):
            export_model(Doubling(), (2, 1, 4, 4), path)
    assert path.exists() == kept


class OnEdge(torch.nn.Module):
    """Rounding alone moves what it gives by a hundredth."""

    def forward(self, past):
        return past + 0.01 * (past * 2**24 % 2 >= 1)


@pytest.mark.parametrize(("off", "kept"), [(0.01, True), (0.05, False)])
def test_what_rounding_does_to_the_model_itself_is_allowed_and_no_more(off, kept, tmp_path, monkeypatch):
    exported_as(monkeypatch, lambda model, past: model(past) + off)
    path = tmp_path / "model.pt2"
    if kept:
        assert "(as rounding moves the model itself)" in write_export(OnEdge(), (2, 1, 4, 4), {}, path)
    else:
        with pytest.raises(ValueError, match="deviates by 0"):
            export_model(OnEdge(), (2, 1, 4, 4), path)
    assert path.exists() == kept


def test_safetensors_hold_weights_and_flags_and_every_ckpt_takes_them(run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    monkeypatch.setattr(digits, "SEQUENCES", {"train": 8, "val": 4, "test": 5})
    best = "results/digits/checkpoints/best.pth"
    main.run(["export", "--ckpt", best, "--output", "out/model.safetensors"])
    state = load_safetensors(run / "out/model.safetensors")
    assert state["config"]["hid_S"] == 8
    for name, value in torch.load(best, weights_only=True)["model"].items():
        assert torch.equal(state["model"][name], value), name
    main.run(
        ["test", "--ckpt", "out/model.safetensors", "--ex_name", "again", "--device", "cpu", "--precision", "fp32"]
    )
    first, again = (
        json.loads((run / f"results/{name}/test.json").read_text())["strict"] for name in ("digits", "again")
    )
    assert first["model"] == again["model"]
    (run / "broken.safetensors").write_bytes((run / "out/model.safetensors").read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"broken\.safetensors: not a safetensors file of ours"):
        main.run(["test", "--ckpt", "broken.safetensors"])


def test_a_notebook_predicts_in_three_lines(run):
    predictor = core.load_predictor(run / "results/digits/checkpoints/best.pth", device="cpu", precision="fp32")
    video = torch.rand(6, 32, 32).numpy()
    future = predictor(video, frames=9)
    assert future.shape == (9, 32, 32)
    config, state = core.settle_flags({}, {}, run / "results/digits/checkpoints/best.pth")
    model = core.load_weights(core.build_model(config), state, "").eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(video[-4:])[None, :, None])[0, :, 0]
    assert abs(future[:4] - expected.clamp(0, 1).numpy()).max() < 1e-4


def test_a_notebook_s_predictor_takes_the_checkpoint_s_precision_and_leaves_random_generators(run, monkeypatch):
    checkpoint = run / "results/digits/checkpoints/best.pth"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)  # "auto" is bfloat16
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert core.load_predictor(checkpoint, "cpu").machine.precision == "fp32"  # as the run was told
    assert torch.equal(torch.rand(3), drawn)
    with pytest.raises(UserError, match="--device cuda:0: is one of auto, cpu, cuda, mps; --gpu says which"):
        core.load_predictor(checkpoint, "cuda:0")
    with pytest.raises(UserError, match="--precision fp16: is one of auto, fp32, tf32, bf16"):
        core.load_predictor(checkpoint, "cpu", "fp16")


def test_predict_mode_writes_what_is_asked_for(run, monkeypatch, capsys):
    import files

    monkeypatch.chdir(run)
    files.write_video(run / "in.avi", files.pictures(12))
    main.run(
        [
            "predict",
            "--ckpt",
            "results/digits/checkpoints/best.pth",
            "--input",
            "in.avi",
            "--output",
            "next.mp4",
            "--frames",
            "7",
        ]
    )
    assert (run / "next.mp4").stat().st_size > 500
    assert "in.avi from frame 8: next.mp4" in capsys.readouterr().out


def test_explain_draws_the_filters_and_tells_what_they_change(run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    monkeypatch.setattr(digits, "SEQUENCES", {"train": 8, "val": 4, "test": 5})
    main.run(
        [
            "explain",
            "--ckpt",
            "results/digits/checkpoints/best.pth",
            "--ex_name",
            "why",
            "--stage",
            "0",
            "3",
            "--device",
            "cpu",
        ]
    )
    for name in ("spectra", "thresholds", "removed", "filter_modes"):
        assert Image.open(run / f"results/why/figures/{name}.png").size[0] > 300
    told = json.loads((run / "results/why/explain.json").read_text())
    assert told["checkpoint"].endswith("best.pth")
    assert set(told["mse"]) == {"learned", "off", "low"}
    assert len({round(v, 6) for v in told["mse"].values()}) == 3
    assert len(told["removed"]) == 4 * 2 * 2
    assert "as learned" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--stage, --block: no such DFDB"):
        main.run(["explain", "--ckpt", "results/digits/checkpoints/best.pth", "--ex_name", "why", "--block", "9"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["export", "--ckpt", "results/digits/checkpoints/best.pth"], "export needs --output"),
        (["export", "--ckpt", "results/digits/checkpoints/best.pth", "--output", "model.xyz"], "unknown kind of file"),
        (["predict", "--ckpt", "results/digits/checkpoints/best.pth"], "predict needs --input"),
        (["predict", "--input", "a", "--output", "b"], "predict needs --ckpt"),
        (["compare"], "at least one RUN"),
    ],
)
def test_missing_flags_are_asked_for(run, monkeypatch, flags, words):
    monkeypatch.chdir(run)
    with pytest.raises(ValueError, match=words):
        main.run(flags)


def test_half_takes_half_the_space_and_predicts_the_same_but_for_rounding(run, monkeypatch):
    monkeypatch.chdir(run)
    best = "results/digits/checkpoints/best.pth"
    for name, flags in (("whole.safetensors", []), ("half.safetensors", ["--half"])):
        main.run(["export", "--ckpt", best, "--output", name, *flags])
    assert (run / "half.safetensors").stat().st_size < 0.6 * (run / "whole.safetensors").stat().st_size
    video = np.random.default_rng(0).random((4, 32, 32), np.float32)
    whole, half = (core.load_predictor(f"{n}.safetensors", "cpu", "fp32")(video) for n in ("whole", "half"))
    assert 0 < np.abs(whole - half).max() < 0.02
    main.run(["export", "--ckpt", best, "--output", "folder", "--half"])
    assert "kept as float16" in (run / "folder/README.md").read_text()
    with pytest.raises(ValueError, match="--half: is for weights"):
        main.run(["export", "--ckpt", best, "--output", "model.onnx", "--half"])


def test_half_leaves_complex_and_whole_numbers_as_they_are():
    model = torch.nn.Linear(2, 2)
    model.mix = torch.nn.Parameter(torch.tensor([0.97 + 0.26j]))
    model.places = torch.nn.Parameter(torch.tensor([70_000]), requires_grad=False)
    halve(model, "a.safetensors")
    assert model.weight.dtype == torch.float16
    assert model.mix.item() == torch.tensor(0.97 + 0.26j).item()
    assert model.places.item() == 70_000


def test_half_refuses_weights_beyond_its_range():
    model = nn.Linear(2, 2)
    model.weight.data[0, 1] = 1e6
    with pytest.raises(ValueError, match="--half: 'weight' is out of the range"):
        halve(model, "model.safetensors")
