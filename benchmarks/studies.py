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


PEERS = [Variant("SimVP-gSTA", "--lr 5e-3", ["gsta", "mse"]), Variant("TAU", "--lr 5e-3", ["tau", "tau_loss"])]
DIGITS = "--dataname digits --precision fp32 --epochs "

DEEP = "--layer_config 0 0 0 4"  # all DFDBs at the deepest level, as the peers have theirs
WIDE = DEEP + " --groups 1"  # and twice as wide

STUDIES = {
    "screen": Study(
        "A small model of its peers' multiply-adds, a first look: one seed, a quarter of the budget",
        DIGITS + "5",
        [
            Variant("now"),
            *PEERS,
            Variant("deep 4", DEEP),
            Variant("deep 4 wide", WIDE),
            Variant("deep 4 wide, lr 5e-3", WIDE + " --lr 5e-3"),
            Variant("deep 16", "--layer_config 0 0 0 16"),
            Variant("deep 8", "--layer_config 0 0 0 8"),
            Variant("deep 4 wide, output 0.1", WIDE, ["scale_0.1"]),
            Variant("deep 4 wide, output 0", WIDE, ["scale_0.0"]),
            Variant("deep 4 wide, batch 2", WIDE + " --batch_size 2"),
            Variant("deep 4 wide, batch 2, lr 5e-3", WIDE + " --batch_size 2 --lr 5e-3"),
            Variant("deep 4 wide, batch 8", WIDE + " --batch_size 8"),
            Variant("deep 4 wide, segments 2 4", WIDE + " --segments 2 4"),
            Variant("deep 4 wide, segments 8 16", WIDE + " --segments 8 16"),
            Variant("deep 4 wide, lr 2e-3", WIDE + " --lr 2e-3"),
            Variant("third stage", "--layer_config 0 0 4 0"),
            Variant("last two stages", "--layer_config 0 0 2 4"),
            Variant("first stage", "--layer_config 4 0 0 0"),
            Variant("deep 4, 10 features", DEEP + " --hid_S 10 --segments 5 10"),
            Variant("deep 4 wide, no filter", WIDE + " --COF 0.5"),
            Variant("deep 4 wide, squared error", WIDE, ["mse"]),
        ],
        seeds=(1,),
    ),
}
