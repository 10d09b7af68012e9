"""What a Machine sets on a CPU, and the models that it predicts with."""

import copy
import json
import mmap
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from torch import nn

from API.device import Machine
from DFDNet import DFDNet

FAULTS = """
import resource
import torch
from API.device import keep_freed_memory

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
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
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


@pytest.mark.parametrize("release", [False, True])
def test_a_model_to_predict_gives_the_bits_of_autocast_from_half_the_weights(release):
    model, past = DFDNet(**TINY, release=release).eval(), torch.rand(2, 4, 1, 32, 32)
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    products = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, kinds)}
    for precision, product in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        machine = Machine("cpu", 0, precision, 0, False)
        ours = machine.to_predict(copy.deepcopy(model).train())
        with torch.no_grad(), machine.autocast():
            assert torch.equal(ours(past), model(past))
        for name, value in ours.state_dict().items():
            if name in products:
                assert value.dtype == product, name
            elif not name.endswith("bias"):
                assert value.dtype in (torch.float32, torch.int64), name
