"""What benchmarks/speed.py makes of the seconds that it has measured."""

import pytest

from benchmarks import speed


def test_ratios_are_of_one_round():
    found = {
        ("product", "bf16"): [1.0, 2.0, 4.0],  # the machine slows down
        ("plain", "bf16"): [1.5, 3.0, 8.0],
        ("plain", "fp32"): [3.0, 6.0, 12.0],
        ("matrices", "bf16"): [100.0, 50.0, 25.0],
    }
    row = speed.describe(found, "product", "bf16", batch=2, flops=10.0)
    assert row["sequences_per_second"] == 1.0
    assert row["range"] == [0.5, 2.0]
    assert row["ratios"] == {"times plain": [1.5, 1.5, 2.0], "times plain fp32": [3.0, 3.0, 3.0]}
    assert row["of_limit"] == pytest.approx([0.2, 0.2, 0.2])  # 20 operations a step at 100, 50, 25 a second


class Answers:
    """Stands for a process: every request's answer in turn."""

    def __init__(self, name, seconds):
        self.name, self.seconds, self.asked = name, iter(seconds), []

    def ask(self, what, kind="fp32", batch=0):
        self.asked.append((what, kind, batch))
        one = next(self.seconds)
        return {"error": "out of memory"} if one is None else {"seconds": one, "flops": 10}


def test_rounds_warm_up_once_and_leave_out_who_runs_out_of_memory():
    matrices, fits, large = Answers("matrices", [9, 1, 2]), Answers("fits", [9, 9, 3, 4]), Answers("large", [None])
    found = speed.measure([fits, large], matrices, "train", ["fp32"], batch=8, rounds=2)
    assert found == {("fits", "fp32"): [3, 4], ("matrices", "fp32"): [10, 5]}
    assert set(fits.asked) == {("train", "fp32", 8)}
