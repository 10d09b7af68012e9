"""Freed memory stays with the process."""

import json
import mmap
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

if {limited}:
    resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))
if {keep}:
    keep_freed_memory()
print([faults() for _ in range(20)])
"""
PAGES = 2**27 // mmap.PAGESIZE  # of the two tensors
LARGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def count_faults(keep: bool, limited: bool = False) -> list[int]:
    command = [sys.executable, "-c", FAULTS.format(keep=keep, limited=limited)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is a setting of glibc")
def test_freed_memory_is_kept_for_the_next_step():
    first, *_, last = count_faults(keep=False)
    assert last > first / 2
    # The heap grows for some steps, as aligned memory does not fit at once.
    assert count_faults(keep=True, limited=True)[-1] < first / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is a setting of glibc")
@pytest.mark.skipif(
    not LARGE.exists() or "[madvise]" not in LARGE.read_text(), reason="this system gives all large pages, or none"
)
def test_memory_lies_in_large_pages_but_where_address_space_is_limited():
    assert count_faults(keep=True)[0] < PAGES / 10
    assert count_faults(keep=True, limited=True)[0] > PAGES / 2
