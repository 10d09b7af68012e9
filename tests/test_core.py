"""The loops, through main.run as a user starts them: small, on the CPU, in this process."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_FLAGS
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import core
import main
from API import UserError
from API.datasets import digits
from API.evaluation import figures
from API.evaluation.test_set import copy_last
from API.presets import PRESETS
from API.run.checkpoint import load_checkpoint
from API.run.flags import RUN_FLAGS
from API.run.guard import gradient_norm
from API.run.state import TrainingState
from API.speed.recompute import recompute_blocks
from DFDNet import DFDNet
from TemporalModule.filter import analyse
from TemporalModule.watch import NOISE_WALK, filters_of
from WFL import WeightedFrequencyLoss


@pytest.fixture(autouse=True)
def _few_sequences(monkeypatch, request):
    monkeypatch.setattr(digits, "SEQUENCES", {"train": 12, "val": 4, "test": 7})
    if "pictures" not in request.keywords:  # most of a tiny run's time
        monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())


@pytest.fixture
def start(tmp_path, monkeypatch):
    """main.run with tiny flags, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, mode: str = "train") -> None:
        tiny = [*TINY_FLAGS, "--batch_size", "4", "--val_batch_size", "3", "--precision", "fp32", "--device", "cpu"]
        main.run([mode, *(tiny if mode == "train" else ["--device", "cpu"]), *flags])

    run.folder = tmp_path / "results"
    return run


@pytest.mark.pictures
def test_a_run_trains_validates_tests_and_leaves_everything_behind(start):
    start("--epochs", "2", "--save_predictions", "5")
    run = start.folder / "digits"
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and "tensorboard" not in p.parts}
    names -= {f"checkpoints/{name}.previous.pth" for name in ("best", "last")}
    pictures = {f"figures/{name}.{kind}" for name in ("best", "median", "worst") for kind in ("png", "gif")}
    assert names == pictures | {
        "config.json", "log.txt", "metrics.jsonl", "splits.json", "test.json", "scores.npz", "predictions.npz",
        "checkpoints/last.pth", "checkpoints/best.pth", "figures/training.png", "figures/frames.png",
    }  # fmt: skip
    assert list((run / "tensorboard").iterdir())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    for record in records:
        assert {"train_loss", "val_loss", "val_mse", "val_ssim", "lr", "sequences_per_second"} <= set(record)
        assert [stage["stage"] for stage in record["filter"]] == [0, 1, 2, 3]
        assert all(0 < stage["removed"] < 1 and stage["threshold_moved"] > 0 for stage in record["filter"])
        assert all(0 < stage["energy_removed"] < stage["removed"] for stage in record["filter"])
    test = json.loads((run / "test.json").read_text())
    assert test["sequences"] == 7
    assert len(test["strict"]["model"]["mse"]["per_frame"]) == 4
    assert json.loads((run / "config.json").read_text())["flags"]["hid_S"] == 8
    assert Image.open(run / "figures/median.png").size[0] > 300


def test_a_model_that_calls_no_filter_trains_and_explain_says_so(start, monkeypatch):
    monkeypatch.setattr("TemporalModule.Branch.forward", lambda self, x: x + self.stau(self.norm_stau(x)))
    start("--epochs", "1")
    assert json.loads((start.folder / "digits/metrics.jsonl").read_text())["filter"] == []
    with pytest.raises(UserError, match="this model calls none"):
        start("--ckpt", str(start.folder / "digits/checkpoints/best.pth"), mode="explain")


def test_complex_weights_learn(start, monkeypatch):
    """Weights of a spectrum are complex; fused Adam takes real ones only."""
    build_model = core.build_model

    def build(config):
        model = build_model(config)
        for module in filters_of(model).values():
            module.weight = torch.nn.Parameter(torch.ones(module.length // 2 + 1, dtype=torch.complex64))
        return model

    def weighted(self, x):
        return torch.view_as_real(torch.view_as_complex(analyse(x)) * self.weight)

    monkeypatch.setattr(core, "build_model", build)
    monkeypatch.setattr("TemporalModule.filter.ThresholdFilter.analyse", weighted)
    start("--epochs", "2", "--grad_clip", "1")
    state = load_checkpoint(start.folder / "digits/checkpoints/last.pth")["model"]
    weights = [value for name, value in state.items() if name.endswith("filter_h.weight")]
    assert weights
    assert all(weight.imag.abs().max() > 0 for weight in weights)


@pytest.mark.parametrize("loss", [torch.nn.HuberLoss(), lambda p, t: torch.fft.rfft2(p - t).abs().mean()])
def test_a_loss_of_one_s_own_gets_float32_in_bfloat16_training(start, monkeypatch, loss):
    seen = []

    class Loss(torch.nn.Module):
        def forward(self, predicted, target):
            seen.append(predicted.dtype)
            return loss(predicted, target)

    monkeypatch.setattr(core, "build_criterion", lambda config: Loss())
    start("--epochs", "1", "--precision", "bf16")
    assert set(seen) == {torch.float32}


def test_a_loss_with_parameters_of_its_own_is_refused(start, monkeypatch):
    class Weighted(torch.nn.MSELoss):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

    monkeypatch.setattr(core, "build_criterion", lambda config: Weighted())
    with pytest.raises(ValueError, match="the loss has parameters to learn"):
        start("--epochs", "1")


def test_test_json_holds_what_the_predictions_say(start):
    start("--epochs", "1", "--save_predictions", "7")
    test = json.loads((start.folder / "digits/test.json").read_text())["strict"]
    saved = np.load(start.folder / "digits/predictions.npz")
    past, future, predicted = (saved[name].astype(np.float64) for name in ("past", "future", "predicted"))
    assert future.shape == (7, 4, 1, 32, 32)
    line = [past[:, -1] + k * (past[:, -1] - past[:, -2]) for k in (1, 2, 3, 4)]
    mse = {"model": predicted, "black": 0 * future, "copy_last": past[:, -1:].repeat(4, 1)}
    mse["linear"] = np.stack(line, 1).clip(0, 1)
    for name, frames in mse.items():
        errors = ((frames - future) ** 2).sum((2, 3, 4))
        assert test[name]["mse"]["mean"] == pytest.approx(errors.mean(), rel=1e-5)
        assert test[name]["mse"]["per_frame"] == pytest.approx(errors.mean(0).tolist(), rel=1e-5)


def test_test_mode_rebuilds_the_model_from_the_checkpoint_alone(start):
    start("--epochs", "1")
    run = start.folder / "digits"
    first = json.loads((run / "test.json").read_text())["strict"]
    start("--ckpt", str(run / "checkpoints/best.pth"), "--ex_name", "again", mode="test")
    again = json.loads((start.folder / "again/test.json").read_text())["strict"]
    assert again["model"]["mse"]["mean"] == pytest.approx(first["model"]["mse"]["mean"], rel=1e-6)
    start(
        "--ckpt",
        str(run / "checkpoints/best.pth"),
        "--ex_name",
        "longer",
        "--out_shape",
        "9",
        "1",
        "32",
        "32",
        mode="test",
    )
    longer = json.loads((start.folder / "longer/test.json").read_text())["strict"]
    assert len(longer["model"]["mse"]["per_frame"]) == 9


def test_scores_go_to_the_run_that_the_checkpoint_is_of(start, monkeypatch):
    for name in ("digits", "other"):
        start("--epochs", "1", "--ex_name", name)
    scores = {name: start.folder / name / "test.json" for name in ("digits", "other")}
    before = scores["digits"].read_bytes()
    checkpoint = start.folder / "other/checkpoints/best.pth"

    def tested(*flags: str) -> None:
        start("--ckpt", *flags, "--protocol", "openstl", mode="test")

    tested("results/other/checkpoints/best.pth")
    assert list(json.loads(scores["other"].read_text()))[-1] == "openstl"
    tested(str(checkpoint), "--res_dir", "elsewhere")
    assert (start.folder.parent / "elsewhere/other/test.json").is_file()
    shutil.copy(checkpoint, "theirs.pth")
    tested("theirs.pth")
    assert (start.folder / "theirs/test.json").is_file()
    scores["other"].unlink()
    monkeypatch.chdir(checkpoint.parent)
    for here in ("best.pth", "../checkpoints/best.pth"):
        tested(here)
        assert scores["other"].is_file()
        scores["other"].unlink()
    assert scores["digits"].read_bytes() == before


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("flags", [(), ("--save_every", "1")], ids=["after an epoch", "after an epoch's last step"])
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(flags, start, monkeypatch):
    start("--epochs", "3", "--ex_name", "whole")
    validate, calls = core.validate, []

    def killed_after_the_first(*args):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return validate(*args)

    monkeypatch.setattr(core, "validate", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        start("--epochs", "3", "--ex_name", "parts", *flags)
    monkeypatch.setattr(core, "validate", validate)
    stopped = load_checkpoint(start.folder / "parts/checkpoints/last.pth")
    assert (stopped["epoch"], stopped["step"]) == (1, 3 if flags else 0)
    main.run(["--resume", "--ex_name", "parts", "--device", "cpu"])  # the other flags are the checkpoint's
    whole, parts = (load_checkpoint(start.folder / name / "checkpoints/last.pth") for name in ("whole", "parts"))
    for key in ("model", "optimizer", "scheduler", "random", "epoch", "best"):
        assert same(whole[key], parts[key]), key
    losses = []
    for name in ("whole", "parts"):
        records = [json.loads(line) for line in (start.folder / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([(record["train_loss"], record["lr"]) for record in records])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def test_resuming_with_other_model_flags_is_refused(start):
    start("--epochs", "1")
    with pytest.raises(ValueError, match="--hid_S 16: this run has 8"):
        main.run(["--dataname", "digits", "--resume", "--hid_S", "16", "--device", "cpu"])


def test_what_helps_past_bad_gradients_may_change_under_resume_and_the_log_says_so(start):
    start("--epochs", "1")
    main.run(["--dataname", "digits", "--resume", "--grad_clip", "1", "--device", "cpu"])
    assert "--grad_clip is 1.0 from here on, and was None" in (start.folder / "digits/log.txt").read_text()


def test_resume_alone_goes_on_with_every_flag_of_the_run(start):
    own = ["--accumulate", "2", "--checkpoint_blocks", "--protocol", "openstl", "--save_predictions", "3"]
    start("--epochs", "1", "--logger", "none", *own)
    main.run(["--dataname", "digits", "--resume", "--device", "cpu", "--save_predictions", "2"])
    then = load_checkpoint(start.folder / "digits/checkpoints/best.pth")["config"]
    now = json.loads((start.folder / "digits/config.json").read_text())["flags"]
    assert {flag: now[flag] for flag in RUN_FLAGS} == {flag: then[flag] for flag in RUN_FLAGS} | {"save_predictions": 2}
    assert json.loads((start.folder / "digits/test.json").read_text())["protocols"] == ["openstl"]


def test_a_test_of_a_checkpoint_takes_over_nothing_of_how_it_was_trained(start):
    start("--epochs", "1", "--logger", "none", "--accumulate", "2", "--protocol", "openstl")
    config, _ = core.settle_flags({"protocol": ["strict"]}, {}, start.folder / "digits/checkpoints/best.pth")
    assert config.protocol == ["strict"]
    assert not hasattr(config, "accumulate")


def test_frames_too_small_to_be_measured_are_refused_before_training(start):
    np.save("small.npy", np.random.default_rng(0).random((9, 8, 1, 4, 4), np.float32))
    small = ["--dataname", "arrays", "--data_root", "small.npy", "--in_shape", "4", "--out_shape", "4"]
    with pytest.raises(UserError, match="at least 7x7, not 4x4"):
        start(*small)
    assert not (start.folder / "arrays/metrics.jsonl").exists()


def test_a_second_run_of_the_same_name_is_refused_and_overwrite_allows_it(start):
    start("--epochs", "1")
    before = (start.folder / "digits/checkpoints/last.pth").read_bytes()
    with pytest.raises(ValueError, match="--overwrite"):
        start("--epochs", "1")
    assert (start.folder / "digits/checkpoints/last.pth").read_bytes() == before
    start("--epochs", "1", "--overwrite", "--seed", "2")


@pytest.fixture
def bad_batch(monkeypatch):
    """Makes the given training batches of a run bad, in order of their coming: one value of past is NaN."""

    def make(*bad: int) -> list:
        seen, batches = [], core.Machine.move

        def move(machine, batch):
            past, future = batches(machine, batch)
            if len(past) == 4 and torch.is_grad_enabled():
                seen.append(1)
                if len(seen) in bad:
                    past = past.clone()
                    past[1, 2, 0, 3, 4] = float("nan")
            return past, future

        monkeypatch.setattr(core.Machine, "move", move)
        return seen

    return make


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch_and_the_last_good_checkpoint(start, bad_batch):
    bad_batch(5)  # three steps an epoch: the second step of the second epoch
    with pytest.raises(ValueError, match=r"epoch 2/3, step 2, learning rate 0\.\d+: the loss .nan. is not") as error:
        start("--epochs", "3")
    assert "\n" not in str(error.value)
    kept = load_checkpoint(start.folder / "digits/checkpoints/last.pth")
    assert kept["epoch"] == 1
    assert all(value.isfinite().all() for value in kept["model"].values())
    with np.load(start.folder / "digits/bad_batch.npz") as saved:
        assert np.argwhere(np.isnan(saved["past"])).tolist() == [[1, 2, 0, 3, 4]]
        assert saved["future"].shape == (4, 4, 1, 32, 32)


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(start, monkeypatch):
    monkeypatch.setattr(core, "gradient_norm", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(ValueError, match=r"epoch 1/1, step 1, .*the gradient .norm inf. is not finite"):
        start("--epochs", "1")


def test_skipping_leaves_out_the_bad_steps_and_nothing_of_them_stays(start, bad_batch):
    bad_batch(2, 4)
    start("--epochs", "2", "--on_nonfinite", "skip")
    records = [json.loads(s) for s in (start.folder / "digits/metrics.jsonl").read_text().splitlines()]
    assert [record["skipped"] for record in records] == [1, 1]
    assert all(np.isfinite(record["train_loss"]) for record in records)
    kept = load_checkpoint(start.folder / "digits/checkpoints/last.pth")
    assert all(value.isfinite().all() for value in kept["model"].values())
    steps = {int(moment["step"]) for moment in kept["optimizer"]["state"].values()}
    assert steps == {4}  # six batches, two of them bad
    assert kept["model"]["temporal.unstem_first.1.num_batches_tracked"] == 4


def test_copy_last_repeats_the_newest_frame():
    past, future = torch.rand(2, 3, 1, 4, 4), torch.zeros(2, 5, 1, 4, 4)
    assert torch.equal(copy_last(past, future), past[:, [2] * 5])
    assert copy_last(torch.rand(2, 3, 5, 4, 4), torch.zeros(2, 5, 2, 4, 4)).shape == (2, 5, 2, 4, 4)


def test_training_lowers_the_loss_and_bfloat16_ends_within_float32_s_spread_over_seeds():
    """Without main's files and tests around it: 30 steps, four seeds of weights, the same data."""
    past, future = torch.rand(2, 30, 2, 4, 1, 32, 32).cumsum(3) / 4  # it has something to learn

    def last_loss(seed: int, bfloat16: bool) -> tuple[float, float]:
        torch.manual_seed(seed)
        model = DFDNet(**TINY | dict(layer_config=(0, 1, 0, 1)))
        criterion, optimizer = WeightedFrequencyLoss(4, 32, 32), torch.optim.Adam(model.parameters(), 3e-3)
        losses = []
        for x, y in zip(past, future):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                predicted = model(x)
            loss = criterion(predicted, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses[0], sum(losses[-5:]) / 5

    single, half = ([last_loss(seed, way) for seed in range(4)] for way in (False, True))
    assert all(last < first / 2 for first, last in (*single, *half))
    ends = [last for _, last in single]
    spread = max(ends) - min(ends)
    assert min(ends) - spread / 2 <= np.mean([last for _, last in half]) <= max(ends) + spread / 2


# Of commit ebc4cd1, the last one before the model was plain PyTorch: 20 steps in float64.
LOSSES = {
    False: [
        1434.088947,
        1309.406730,
        961.490838,
        545.701569,
        443.745600,
        401.012100,
        355.452600,
        334.312502,
        332.060761,
        331.440947,
        323.727933,
        322.891678,
        319.206765,
        318.413674,
        308.024549,
        320.019070,
        318.097280,
        318.256060,
        323.115635,
        322.010667,
    ],
    True: [
        694.617763,
        659.116533,
        502.554268,
        283.132578,
        135.110133,
        137.270147,
        150.387807,
        132.485037,
        102.330742,
        88.695765,
        87.225907,
        94.950679,
        96.496245,
        95.399019,
        90.093829,
        90.998308,
        87.925683,
        87.103248,
        87.842482,
        86.664927,
    ],
}


@pytest.mark.parametrize("release", LOSSES)
def test_the_loss_of_20_steps_is_that_of_before_the_model_was_plain(release):
    torch.manual_seed(3)
    model = DFDNet(**TINY, release=release).double()
    criterion = WeightedFrequencyLoss(4, 32, 32, release).double()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=20, final_div_factor=1e4)
    generator, losses = torch.Generator().manual_seed(5), []
    for _ in range(20):
        past, future = (torch.rand(2, 4, 1, 32, 32, generator=generator, dtype=torch.float64) for _ in range(2))
        optimizer.zero_grad()
        loss = criterion(model(past), future)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    # Training amplifies the rounding of the loss, in float32, which is another one on another processor.
    assert losses[:16] == pytest.approx(LOSSES[release][:16], rel=1e-4)
    assert losses == pytest.approx(LOSSES[release], rel=1e-3)


class HostReads(TorchDispatchMode):
    """Counts the operators that hand a value, or a size that hangs on values, to the host: on a GPU it waits there."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "index.Tensor", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += str(operator).removeprefix("aten.").startswith(self.WAITS)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("largest", [None, 1e-3, 1e9])
def test_the_norm_of_the_gradient_is_exact_and_clipping_scales_to_it(largest):
    parameters = [torch.zeros(shape) for shape in ((300, 500), (7,), (2, 3, 3, 3), (4,))]
    parameters.insert(0, torch.zeros(5, dtype=torch.complex64))
    for p in parameters[:-1]:  # the last one has none
        p.grad = torch.randn_like(p)
    parameters[3].grad = parameters[3].grad.contiguous(memory_format=torch.channels_last)
    before = [p.grad.to(torch.complex128) for p in parameters[:-1]]
    norm = torch.cat([g.flatten() for g in before]).norm().item()
    assert gradient_norm(parameters, largest).item() == pytest.approx(norm, rel=1e-5)
    scale = 1 if largest is None else min(1, largest / norm)
    for p, g in zip(parameters, before):
        assert torch.allclose(p.grad.to(g.dtype), g * scale, rtol=1e-5)


def train_batches(model, batches, folder, optimizer, dtype=torch.float32, precision="fp32", mode="stop", **options):
    """One pass of core.train_one_epoch over batches, without the rest of a run."""
    machine = core.Machine("cpu", 0, precision, 1, False)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    guard = core.Guard(model, optimizer, mode, None, "test")
    criterion = WeightedFrequencyLoss(4, 32, 32).to(dtype)
    with TrainingState(model, optimizer, scheduler, {}, machine.world).save_in(folder) as run:
        return core.train_one_epoch(model, criterion, batches, run, guard, machine, **options)


@pytest.mark.parametrize(("mode", "recompute", "reads"), [("skip", False, 0), ("stop", True, 1)])
def test_a_training_step_hands_the_host_nothing_but_the_verdict(mode, recompute, reads, tmp_path):
    """The verdict that stops a run is read at once on a CPU; on a GPU one step later, from pinned memory."""
    counts = []
    for steps in (1, 3):
        model = DFDNet(**TINY | dict(layer_config=(1, 1, 0, 1)))
        if recompute:
            recompute_blocks(model.blocks())
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        batches = [(torch.rand(4, 4, 1, 32, 32), torch.rand(4, 4, 1, 32, 32))] * steps
        with HostReads() as host:
            train_batches(model, batches, tmp_path, optimizer, precision="bf16", mode=mode, grad_clip=1.0, accumulate=2)
        counts.append(host.count)
    assert counts[1] - counts[0] == 2 * reads  # what two more steps read; the rest is the epoch's


def test_a_batch_computed_in_parts_is_the_batch(start, tmp_path):
    """With every part the whole in BatchNorm's eyes: two copies of the same two sequences."""
    torch.manual_seed(0)
    past, future = (torch.rand(2, 4, 1, 32, 32).repeat(2, 1, 1, 1, 1) for _ in range(2))
    weights = []
    for parts in (1, 2):
        torch.manual_seed(1)
        model = DFDNet(**TINY).double()
        batch = [(past.double(), future.double())]
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train_batches(model, batch, tmp_path, optimizer, torch.float64, grad_clip=1e-3, accumulate=parts)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (weights[0] - weights[1]).norm() <= 1e-7 * weights[0].norm()
    with pytest.raises(UserError, match="--accumulate 3: must divide"):
        start("--epochs", "1", "--accumulate", "3")
    with pytest.raises(UserError, match="--accumulate 3: must divide"):
        main.run(["summary", "--dataname", "digits", "--accumulate", "3"])


def test_every_sequence_of_a_short_batch_in_parts_counts_alike(tmp_path):
    """With one past for all, and so one part for BatchNorm: three futures in parts of two and one."""
    torch.manual_seed(0)
    past, future = torch.rand(1, 4, 1, 32, 32).repeat(3, 1, 1, 1, 1), torch.rand(3, 4, 1, 32, 32)
    weights = []
    for parts in (1, 2):
        torch.manual_seed(1)
        model = DFDNet(**TINY).double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        batch = [(past.double(), future.double())]
        train_batches(model, batch, tmp_path, optimizer, torch.float64, grad_clip=1e-3, accumulate=parts)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (weights[0] - weights[1]).norm() <= 1e-7 * weights[0].norm()


def test_the_learning_rate_of_a_record_is_that_of_the_last_step(start):
    start("--epochs", "2")
    lr = [json.loads(line)["lr"] for line in (start.folder / "digits/metrics.jsonl").read_text().splitlines()]
    parameter = torch.nn.Parameter(torch.zeros(1))
    peak = PRESETS["digits"]["lr"]
    optimizer = torch.optim.Adam([parameter], lr=peak)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=6, final_div_factor=1e4)
    used = []
    for _ in range(6):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert lr == pytest.approx([used[2], used[5]], rel=1e-9)


@pytest.mark.parametrize("split", [False, True])
def test_noise_is_told_from_the_learning_rates_that_the_thresholds_have(start, monkeypatch, split):
    rates = []

    def build_optimizer(model, config, steps_an_epoch):
        thresholds = [module.threshold for module in filters_of(model).values()]
        others = [p for p in model.parameters() if all(p is not one for one in thresholds)]
        if split:
            others.append(thresholds.pop())  # thresholds of two learning rates: nothing to compare with
        optimizer = torch.optim.Adam([{"params": others}, {"params": thresholds, "lr": 1e-2}], lr=1e-3)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates.append(1 / (1 + step)) or rates[-1])
        return optimizer, rate

    monkeypatch.setattr(core, "build_optimizer", build_optimizer)
    start("--epochs", "1")
    (record,) = map(json.loads, (start.folder / "digits/metrics.jsonl").read_text().splitlines())
    assert record["lr"] == pytest.approx(1e-3 / 3)
    walk = NOISE_WALK * 1e-2 * np.sqrt(1 + 1 / 4 + 1 / 9)
    for stage in record["filter"]:
        if split:
            assert "threshold_moved_over_noise" not in stage
        else:
            assert stage["threshold_moved_over_noise"] == pytest.approx(stage["threshold_moved"] / walk)


def test_an_edit_of_forward_predicts_what_it_trains(start, monkeypatch):
    forward = DFDNet.forward
    monkeypatch.setattr(DFDNet, "forward", lambda self, past: past[:, -1:] + forward(self, past))
    start("--epochs", "1", "--out_shape", "6", "1", "32", "32")
    checkpoint = start.folder / "digits/checkpoints/best.pth"
    past = torch.rand(1, 4, 1, 32, 32)
    model = core.build_model(SimpleNamespace(**load_checkpoint(checkpoint)["config"])).eval()
    model.load_state_dict(load_checkpoint(checkpoint)["model"])
    predictor = core.load_predictor(checkpoint, "cpu", "fp32")
    with torch.no_grad():
        first = model(past)
        on = model(torch.cat([past, first], 1)[:, -4:])
    assert torch.allclose(predictor.ahead(past[0], 9), torch.cat([first, on], 1)[0, :9], atol=1e-4)


def test_plain_applies_nothing_and_trains_the_same(start):
    losses = {}
    for name, *flags in (["fast"], ["plain", "--plain"]):
        start("--epochs", "1", "--ex_name", name, *flags)
        losses[name] = json.loads((start.folder / name / "metrics.jsonl").read_text())["train_loss"]
        assert ("Mish" in (start.folder / name / "log.txt").read_text()) == (name == "fast")
    assert losses["plain"] == pytest.approx(losses["fast"], rel=1e-4)
    with pytest.raises(UserError, match="--plain: applies nothing; leave out --checkpoint_blocks"):
        start("--epochs", "1", "--ex_name", "both", "--plain", "--checkpoint_blocks")


def test_a_run_starts_from_another_s_model_with_its_flags_and_says_what_fits(start):
    start("--epochs", "1", "--COF", "0.4", "--ex_name", "first")
    first = "results/first/checkpoints/best.pth"
    larger = ["--in_shape", "4", "1", "64", "64", "--out_shape", "4", "1", "64", "64", "--segments", "8", "16"]
    flags = ["--dataname", "digits", "--batch_size", "4", "--device", "cpu", "--ex_name", "second", *larger]
    main.run([*flags, "--init", first, "--epochs", "1", "--lr", "1e-30"])
    before, after = (load_checkpoint(f"results/{name}/checkpoints/best.pth") for name in ("first", "second"))
    assert {flag: after["config"][flag] for flag in ("COF", "hid_S")} == {"COF": 0.4, "hid_S": 8}
    name = "temporal.stages.0.0.branch_r1.dfdu.predict_h.weight"
    assert torch.allclose(before["model"][name], after["model"][name], atol=1e-6)
    records = [json.loads((start.folder / run / "metrics.jsonl").read_text()) for run in ("first", "second")]
    moved = [[stage["threshold_moved"] for stage in record["filter"]] for record in records]
    assert min(moved[0]) > 0
    assert max(moved[1]) == 0  # counted from where this run has started
    log = (start.folder / "second/log.txt").read_text()
    assert "245 of the model's 277 tensors fit; temporal.stages.*.*.branch_r*.dfdu.filter_h.start (8), " in log
    with pytest.raises(UserError, match=r"--segments \[4, 8\]: this run has \[8, 16\]"):
        main.run([*flags, "--resume", "--segments", "4", "8"])


@pytest.mark.parametrize("flags", [[], ["--checkpoint_blocks"], ["--plain"]], ids=str)
def test_a_part_that_is_frozen_stays_as_it_is_and_the_rest_trains(start, monkeypatch, flags):
    """As docs/train.md says how."""
    build = core.build_model

    def frozen(config):
        model = build(config)
        model.encoder.requires_grad_(False)
        return model

    start("--epochs", "1", "--ex_name", "before")
    monkeypatch.setattr(core, "build_model", frozen)
    before = "results/before/checkpoints/best.pth"
    start("--epochs", "1", "--ex_name", "after", "--init", before, *flags)
    then, now = (load_checkpoint(path)["model"] for path in (before, "results/after/checkpoints/last.pth"))
    moved = {name for name in then if name.endswith(("weight", "bias")) and not torch.equal(then[name], now[name])}
    assert moved == {name for name in then if name.endswith(("weight", "bias")) and not name.startswith("encoder.")}


def test_a_release_checkpoint_starts_a_model_for_frames_of_another_size(golden, tmp_path):
    torch.save({"net": golden["state_dict"]}, tmp_path / "theirs.pth")
    old = core.load_release(tmp_path / "theirs.pth", release=False)
    half = dict(in_shape=[4, 1, 32, 32], out_shape=[4, 1, 32, 32], layer_config=[1, 4, 2, 4])
    config = core.Config(init=tmp_path / "theirs.pth", release=False)
    new = DFDNet(hid_S=old.decoder.readout.in_channels, **half)
    assert "predict_h.weight" in core.start_from(new, config)
    theirs, fits = old.state_dict(), 0
    for name, value in new.state_dict().items():
        if value.shape == theirs[name].shape:
            assert torch.equal(value, theirs[name]), name
            fits += 1
    assert fits == 495
    config.init = tmp_path / "cut.pth"
    torch.save({name: v for name, v in golden["state_dict"].items() if name != "dec.readout.bias"}, config.init)
    with pytest.raises(UserError, match=r"--init .*cut\.pth: release checkpoint: 'dec.readout.bias' is missing"):
        core.start_from(new, config)


def test_a_release_checkpoint_is_tested_and_can_start_a_run(start, golden, tmp_path):
    torch.save({"net": golden["state_dict"]}, tmp_path / "theirs.pth")
    start("--release", "--ckpt", "theirs.pth", "--dataname", "digits", "--ex_name", "theirs", mode="test")
    test = json.loads((start.folder / "theirs/test.json").read_text())
    assert test["model_flags"]["release"]
    assert len(test["strict"]["model"]["mse"]["per_frame"]) == 4
    with pytest.raises(ValueError, match="add --release"):
        start("--ckpt", "theirs.pth", mode="test")
    frames = ["4", "1", "64", "64"]
    flags = [
        "--init",
        "theirs.pth",
        "--in_shape",
        *frames,
        "--out_shape",
        *frames,
        "--layer_config",
        "1",
        "4",
        "2",
        "4",
    ]
    start(*flags, "--epochs", "1", "--ex_name", "started")
    record = json.loads((start.folder / "started/metrics.jsonl").read_text())
    assert all(stage["threshold_moved"] > 0 for stage in record["filter"])
