"""Weights as users have them."""

import re

import pytest
import torch
from conftest import TINY, TINY_FLAGS
from full_disk import small_files
from torch import nn

from API import UserError
from API.run.checkpoint import load_checkpoint, save_checkpoint
from API.run.flags import flags_to_start_with
from API.run.release import infer_args, infer_release_args, is_release, read_release, release_name
from API.run.weights import as_checkpoint, load_fitting, load_into, load_safetensors, save_safetensors
from DFDNet import DFDNet

SHAPES = [
    TINY,
    dict(in_shape=(4, 3, 32, 48), out_shape=(4, 2, 32, 48), hid_S=8, layer_config=(0, 2, 0, 1), segments=(2, 4),
         groups=1, kernel_size=(3, 5, 3, 3)),
]  # fmt: skip


def same(model: nn.Module, weights: dict) -> bool:
    expected = model.state_dict()
    return weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)


def wrapped_in_parts(model: DFDNet) -> nn.Module:
    """Every DFDB compiled on its own, and the whole on several GPUs."""
    for stage in model.temporal.stages:
        for i, block in enumerate(stage):
            stage[i] = torch.compile(block)
    return nn.DataParallel(model)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda model: torch.compile(nn.DataParallel(model)), wrapped_in_parts]
)
def test_names_under_wrappers_are_taken(wrap):
    torch.manual_seed(1)
    model = DFDNet(**TINY)
    torch.manual_seed(1)
    wrapped = wrap(DFDNet(**TINY)).state_dict()
    assert not same(model, wrapped)
    checkpoint = as_checkpoint({"model": wrapped, "config": {"lr": 0.1}, "epoch": 3}, "a.pth")
    assert same(model, checkpoint["model"])
    assert (checkpoint["config"], checkpoint["epoch"]) == ({"lr": 0.1}, 3)


@pytest.mark.parametrize("place", [None, "model", "state_dict", "net"])
def test_bare_weights_are_taken_wherever_they_lie(tmp_path, place):
    model = DFDNet(**TINY)
    torch.save(model.state_dict() if place is None else {place: model.state_dict()}, tmp_path / "a.pth")
    checkpoint = as_checkpoint(load_checkpoint(tmp_path / "a.pth"), "a.pth")
    assert same(model, checkpoint["model"])
    assert checkpoint["config"] is None
    other = DFDNet(**TINY)
    load_into(other, checkpoint["model"], "a.pth")
    assert same(model, other.state_dict())


@pytest.mark.parametrize("args", SHAPES)
def test_the_model_s_arguments_are_read_off_the_shapes_of_bare_weights(args):
    model = DFDNet(**args)
    found = infer_args(model.state_dict())
    rebuilt = DFDNet(**found)
    load_into(rebuilt, model.state_dict(), "a.pth")
    for name, value in args.items():
        assert tuple(found[name]) == value if isinstance(value, tuple) else found[name] == value, name


def test_the_release_s_weights_are_told_from_ours():
    model = DFDNet(**TINY, release=True)
    theirs = {f"module.{release_name(name)}": value for name, value in model.state_dict().items()}
    assert not is_release(model.state_dict())
    state = read_release({"net": theirs, "optimizer": {}})
    assert is_release(state)
    assert infer_release_args(state)["in_shape"] == TINY["in_shape"]


def without(name: str) -> dict:
    weights = DFDNet(**TINY).state_dict()
    del weights[name]
    return weights


@pytest.mark.parametrize(("weights", "said"), [
    (lambda: without("decoder.readout.weight"), "'decoder.readout.weight' is missing"),
    (lambda: DFDNet(**TINY | {"hid_S": 16}).state_dict(),
     r"'encoder.layers.0.conv.weight' is \(16, 1, 3, 3\), the model's is \(8, 1, 3, 3\)"),
    (lambda: DFDNet(**TINY).state_dict() | {"encoder.extra": torch.zeros(1)}, "'encoder.extra' has no place"),
    (lambda: nn.Linear(2, 2).state_dict(), "'encoder.layers.0.conv.weight' is missing"),
    (lambda: DFDNet(**TINY).state_dict() | {"x" * 10_000: torch.zeros(1)}, "has no place"),
])  # fmt: skip
def test_the_first_name_that_does_not_fit_is_told_in_a_short_line(weights, said):
    with pytest.raises(UserError, match=f"a.pth: does not fit .*{said}") as error:
        load_into(DFDNet(**TINY), weights(), "a.pth")
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, {"model": {}}, {"model": {"w": 3}}, {"model": {1: torch.zeros(1)}},
                                   {"a": torch.zeros(1), "module.a": torch.ones(1)}])  # fmt: skip
def test_what_holds_no_weights_is_refused(state):
    with pytest.raises(UserError, match=r"a\.pth: not the weights of a model"):
        as_checkpoint(state, "a.pth")


def test_weights_of_another_model_are_refused_with_one_of_their_names():
    with pytest.raises(UserError, match="not the weights of a DFDNet, they start with 'weight'"):
        infer_args(nn.Linear(2, 2).state_dict())


def test_safetensors_without_flags_are_bare_weights(tmp_path):
    from safetensors.torch import save_file

    model = DFDNet(**TINY)
    save_file({name: value.clone() for name, value in model.state_dict().items()}, tmp_path / "a.safetensors")
    assert load_safetensors(tmp_path / "a.safetensors")["config"] is None
    assert same(model, load_checkpoint(tmp_path / "a.safetensors")["model"])


def test_safetensors_that_do_not_fit_on_the_disk_are_told_and_leave_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    with small_files(10_000), pytest.raises(UserError, match=r"--output: cannot write .*a\.safetensors") as error:
        save_safetensors({"w": torch.zeros(100_000)}, {}, path)
    assert "\n" not in str(error.value)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_wrapped_and_bare_weights_predict_what_their_checkpoint_does(tmp_path, monkeypatch, capsys):
    import core
    import main
    from API.datasets import digits
    from API.evaluation import figures

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "SEQUENCES", {"train": 8, "val": 4, "test": 4})
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())
    flags = [*TINY_FLAGS, "--batch_size", "4", "--epochs", "1", "--precision", "fp32", "--device", "cpu"]
    main.run(flags)
    state = load_checkpoint(tmp_path / "results/digits/checkpoints/best.pth")
    video = torch.rand(8, 32, 32).numpy()
    expected = core.load_predictor("results/digits/checkpoints/best.pth", "cpu", "fp32")(video)
    torch.save({**state, "model": {f"module.{name}": v for name, v in state["model"].items()}}, "wrapped.pth")
    torch.save(state["model"], "bare.pth")
    for name in ("wrapped.pth", "bare.pth"):
        capsys.readouterr()
        assert (core.load_predictor(name, "cpu", "fp32")(video) == expected).all()
        said = capsys.readouterr().out
        assert ("--COF 0.3125 is taken as it is" in said) == (name == "bare.pth")
        main.run([*flags, "--init", name, "--ex_name", name, "--lr", "1e-30"])
        trained = load_checkpoint(tmp_path / f"results/{name}/checkpoints/best.pth")["model"]
        weight = "encoder.layers.0.conv.weight"
        assert torch.allclose(trained[weight], state["model"][weight], atol=1e-6)
    with pytest.raises(UserError, match=r"wrapped\.pth: does not fit .*'encoder.layers.0.conv.weight' is") as error:
        main.run([*flags, "--hid_S", "16", "--init", "wrapped.pth", "--ex_name", "x"])
    assert len(str(error.value)) < 300


# --init: what fits ---------------------------------------------------------------------------------------------------

LARGER = dict(in_shape=(4, 1, 64, 64), out_shape=(4, 1, 64, 64))
THRESHOLDS = ("filter_h.threshold", "filter_h.start", "filter_w.threshold", "filter_w.start")
CHANGES = {  # changes of the model: how the names end that do not fit it
    "frame size": (LARGER, (*THRESHOLDS, "predict_h.weight", "predict_w.weight")),
    "frame size and segments": (LARGER | dict(segments=(8, 16)), THRESHOLDS),  # signals as long as before
    "colour": (
        dict(in_shape=(4, 3, 32, 32), out_shape=(4, 3, 32, 32)),
        ("encoder.layers.0.conv.weight", "decoder.readout.weight", "decoder.readout.bias"),
    ),
    "segments": (dict(segments=(2, 4)), (*THRESHOLDS, "predict_h.weight", "predict_w.weight")),
    "more frames": (dict(out_shape=(9, 1, 32, 32)), ()),
    "COF": (dict(COF=0.5), ()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_fits_another_model_is_taken_and_the_rest_is_named_and_new(change):
    changes, ends = CHANGES[change]
    old, new = DFDNet(**TINY).state_dict(), DFDNet(**TINY | changes)
    for value in old.values():
        value += 1  # nothing is as at the start
    before = {name: value.clone() for name, value in new.state_dict().items()}
    told = load_fitting(new, old, "old.pth")
    fresh = {name for name in before if ends and name.endswith(ends)}
    for name, value in new.state_dict().items():
        assert torch.equal(value, before[name] if name in fresh else old[name]), name
    if not fresh:
        assert told == f"old.pth: all {len(before)} tensors fit"
    else:
        assert told.startswith(f"old.pth: {len(before) - len(fresh)} of the model's {len(before)} tensors fit; ")
        assert told.endswith("start anew")
        assert sum(map(int, re.findall(r"\((\d+)\)", told))) == len(fresh)
        assert len(told) < 700


def test_a_deeper_model_starts_from_all_of_a_shallower_one_and_the_other_way_round():
    shallow, deep = (dict(TINY, layer_config=depths) for depths in ((1, 1, 1, 1), (1, 4, 1, 4)))
    small, large = DFDNet(**shallow), DFDNet(**deep)
    assert "start anew" in load_fitting(large, small.state_dict(), "a.pth")
    assert all(torch.equal(large.state_dict()[name], value) for name, value in small.state_dict().items())
    small = DFDNet(**shallow)
    told = load_fitting(small, large.state_dict(), "b.pth")
    assert re.match(r"b\.pth: (\d+) of the model's \1 tensors fit; .* are not in this model$", told)
    assert all(torch.equal(large.state_dict()[name], value) for name, value in small.state_dict().items())


@pytest.mark.parametrize("weights", [
    lambda: DFDNet(**TINY | {"hid_S": 16}).state_dict(),
    lambda: DFDNet(**TINY | {"in_shape": (8, 1, 32, 32)}).state_dict(),
    lambda: nn.Linear(2, 2).state_dict(),
])  # fmt: skip
def test_too_little_to_start_from_is_refused_and_changes_nothing(weights):
    model = DFDNet(**TINY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"a\.pth: does not fit .* tensors fit, too few to start from") as error:
        load_fitting(model, weights(), "a.pth")
    assert len(str(error.value)) < 300
    assert same(model, before)


def test_a_run_takes_the_model_s_flags_over_and_frame_shapes_only_on_the_same_data_set(tmp_path):
    names = ("in_shape", "out_shape", "hid_S", "COF", "layer_config")
    flags = {**TINY, "COF": 0.4, "dataname": "digits", "lr": 0.1, "epochs": 7}
    weights = DFDNet(**TINY).state_dict()
    save_checkpoint(tmp_path / "a.pth", {"model": weights, "config": flags})
    torch.save(weights, tmp_path / "bare.pth")
    taken = {name: flags[name] for name in names}
    model = {name: flags[name] for name in ("hid_S", "COF", "layer_config")}
    assert flags_to_start_with(tmp_path / "a.pth", "digits", names) == taken
    assert flags_to_start_with(tmp_path / "a.pth", "kth", names) == model
    assert flags_to_start_with(tmp_path / "bare.pth", "digits", names) == {"hid_S": 8, "layer_config": [1, 4, 0, 1]}
    torch.save({f"changed.{name}": value for name, value in weights.items()}, tmp_path / "changed.pth")
    assert flags_to_start_with(tmp_path / "changed.pth", "digits", names) == {}
