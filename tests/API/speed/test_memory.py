"""Freed memory stays with the process."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource
import torch
from API.speed.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**24) for _ in range(2)]  # 64 MiB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if {keep}:
    keep_freed_memory()
print([faults() for _ in range(20)])
"""


def count_faults(keep: bool) -> list[int]:
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is a setting of glibc")
def test_freed_memory_is_kept_for_the_next_step():
    first, *_, last = count_faults(keep=False)
    assert last > first / 2
    # The heap grows for some steps, as aligned memory does not fit at once.
    assert count_faults(keep=True)[-1] < first / 10
