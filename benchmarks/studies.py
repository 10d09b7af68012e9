"""The studies of study.py, as data: a question, the runs that answer it, and how long each may learn.

A variant is flags of main.py, and names of variants.py where the paper has no such flag. Differences are to the first
variant of a study. docs/results.md has the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variant:
    """One way to train: its name, flags over the study's, changes of variants.py."""

    name: str
    flags: str = ""
    changes: Sequence[str] = ()


@dataclass(frozen=True)
class Study:
    """A question and its runs: every variant with every seed, for so many epochs (in flags) or minutes of training."""

    question: str
    flags: str
    variants: Sequence[Variant]
    seeds: Sequence[int] = (1, 2, 3)
    minutes: float | None = None
    metrics: Sequence[str] = field(default=("mse", "mae", "ssim", "psnr"))


PEERS = (Variant("SimVP-gSTA", "--lr 5e-3", ["gsta", "mse"]), Variant("TAU", "--lr 5e-3", ["tau", "tau_loss"]))
DIGITS = "--dataname digits --precision fp32 --epochs "
BEFORE = " --layer_config 1 1 1 1 --groups 2 --segments 4 8 --lr 1e-2"  # the preset before "small" was answered
WIDE = "--layer_config 0 0 0 4 --groups 1"  # all DFDBs at the deepest level, as the peers have theirs
LAST_TWO = "--layer_config 0 0 4 4 --groups 4 --segments 2 4"
THIRD = "--layer_config 0 0 8 0 --groups 2 --segments 3 6 --hid_S 6"  # of the third stage, what costs as much
SMALL = WIDE + " --segments 4 8 --hid_S 8 --batch_size 4 --lr 5e-3"

FILTERS = (
    Variant("learned"),
    Variant("none", "--COF 0.5"),
    Variant("low only", changes=["low_only"]),
    Variant("low only, COF 0.25", "--COF 0.25", ["low_only"]),
    Variant("start at 1 % of the energy", changes=["start_1_percent"]),
    Variant("start at 5 %", changes=["start_5_percent"]),
    Variant("start at 10 %", changes=["start_10_percent"]),
    Variant("soft shrinkage", changes=["soft_shrinkage"]),
    Variant("one threshold a segment", changes=["shared_thresholds"]),
)


def filters(sigma: float) -> Study:
    """Which filter, at this noise."""
    seen = f"with Gaussian noise of {sigma:g} on the past" if sigma else "on clean digits"
    noise = f" --noise {sigma:g}" if sigma else ""
    return Study(f"Which filter, {seen}?", DIGITS + "5" + noise, FILTERS)


LOSSES = (("WFL", ()), ("released WFL", ["released_loss"]), ("squared error", ["mse"]))
FULL = (
    Variant("DFDNet"),
    Variant("SimVP-gSTA", "--lr 1e-3", ["gsta_full", "mse"]),
    Variant("TAU", "--lr 1e-3", ["tau_full", "tau_loss"]),
)

STUDIES = {
    "small": Study(
        "Does the chosen small model beat its peers, at equal multiply-adds and equal sequences?",
        DIGITS + "20" + BEFORE,
        [
            *PEERS,
            Variant("deep 4 wide, lr 5e-3", WIDE + " --lr 5e-3"),
            Variant("deep 4 wide, lr 2e-3", WIDE + " --lr 2e-3"),
            Variant("deep 4 wide, lr 5e-3, segments 2 4", WIDE + " --lr 5e-3 --segments 2 4"),
            Variant("deep 4 wide, lr 5e-3, squared error", WIDE + " --lr 5e-3", ["mse"]),
            Variant("last two stages, a quarter wide, segments 2 4, lr 5e-3", LAST_TWO + " --lr 5e-3"),
            Variant("third stage 8, half as wide, hid_S 6, lr 5e-3", THIRD + " --lr 5e-3"),
            Variant("before"),
        ],
    ),
    "short": Study(
        "And after 5 epochs, as in the quick start?",
        DIGITS + "5",
        [
            *PEERS,
            Variant("digits"),
        ],
    ),
    "time": Study(
        "And in equal time, 4 minutes on one core?",
        "--dataname digits --precision fp32",
        [
            *PEERS,
            Variant("digits"),
        ],
        minutes=4,
    ),
    "shape": Study(
        "Width against depth, where the DFDBs stand, segments, the scale of their output at the start, batches",
        DIGITS + "5",
        [
            Variant("digits"),
            Variant("a DFDB in every stage, half as wide", "--layer_config 1 1 1 1 --groups 2"),
            Variant("half as wide", "--groups 2"),
            Variant("third stage, half as wide", "--layer_config 0 0 4 0 --groups 2"),
            Variant("deep 16, half as wide", "--layer_config 0 0 0 16 --groups 2"),
            Variant("segments 2 4", "--segments 2 4"),
            Variant("output 0.1", changes=["scale_0.1"]),
            Variant("batch 2", "--batch_size 2"),
            Variant("batch 8", "--batch_size 8"),
            Variant("deep 3, segments 2 4", "--layer_config 0 0 0 3 --segments 2 4"),
            Variant("deep 10, hid_S 6, segments 2 4", "--hid_S 6 --layer_config 0 0 0 10 --segments 2 4"),
            Variant("third stage 6, a quarter wide, segments 2 4", "--layer_config 0 0 6 0 --groups 4 --segments 2 4"),
            Variant("last two stages, a quarter wide, segments 2 4", LAST_TWO),
            Variant("deep 7, half as wide, segments 1 2", "--layer_config 0 0 0 7 --groups 2 --segments 1 2"),
            Variant("fourth of five layers", "--layer 5 --kernel_size 3 --layer_config 0 0 0 4 0"),
            Variant("third stage, a quarter wide, segments 1 2", "--layer_config 0 0 4 0 --groups 4 --segments 1 2"),
            Variant("deep 8, half as wide, segments 2 4", "--layer_config 0 0 0 8 --groups 2 --segments 2 4"),
            Variant("segments 8 16", "--segments 8 16"),
            Variant("output 0", changes=["scale_0.0"]),
            Variant("bfloat16", "--precision bf16"),
        ],
    ),
    "mnist": Study(
        "The same on real Moving MNIST, for 60,000 sequences",
        "--dataname mmnist --precision fp32 --epochs 60 --epoch_size 1000 --log_step 5 --num_workers 1",
        [
            Variant("DFDNet", SMALL),
            Variant("SimVP-gSTA", "--batch_size 4 --lr 5e-3", ["gsta", "mse"]),
            Variant("TAU", "--batch_size 4 --lr 5e-3", ["tau", "tau_loss"]),
        ],
        seeds=(1,),
    ),
    "filter": filters(0),
    "filter_noise_0.1": filters(0.1),
    "filter_noise_0.2": filters(0.2),
    "filter_noise_0.4": filters(0.4),
    "loss": Study(
        "Which loss, each at its best of three learning rates?",
        DIGITS + "5",
        [Variant(f"{name}, lr {lr}", f"--lr {lr}", loss) for name, loss in LOSSES for lr in ("2e-3", "5e-3", "1e-2")],
    ),
    "release": Study(
        "The paper's method against what the authors' code computes",
        DIGITS + "5",
        [Variant("paper"), Variant("release", "--release")],
    ),
    "parts": Study(
        "What are STAU and the second branch worth?",
        DIGITS + "5",
        [
            Variant("whole"),
            Variant("without STAU", changes=["no_stau"]),
            Variant("branch r1 alone", changes=["r1_alone"]),
            Variant("branch r2 alone", changes=["r2_alone"]),
        ],
    ),
    **{
        f"gpu_{minutes}": Study(
            f"Full models on Moving MNIST, {minutes} minutes of training each on one GPU",
            "--dataname mmnist --epoch_size 1000",
            FULL,
            seeds=(1,),
            minutes=minutes,
        )
        for minutes in (10, 25)
    },
}
