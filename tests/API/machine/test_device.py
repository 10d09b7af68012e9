"""Which device and precision a run takes, how batches get there, and what failures of the hardware are told as."""

from unittest import mock

import pytest
import torch

from API import UserError
from API.machine import device
from API.machine.device import Machine, choose_device, choose_precision, describe_failure


def test_a_device_that_is_not_there_is_refused_in_a_line_that_names_the_flag():
    with (
        mock.patch("torch.cuda.is_available", return_value=False),
        pytest.raises(UserError, match=r"^--device cuda: .*--device auto"),
    ):
        choose_device("cuda")
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.device_count", return_value=2),
    ):
        assert choose_device("auto", 1) == torch.device("cuda", 1)
        with pytest.raises(UserError, match=r"^--gpu 2: there are 2 GPUs"):
            choose_device("cuda", 2)


def test_the_chosen_gpu_is_made_the_current_one_and_asked_what_it_can_do():
    current = [0]

    class Current:
        """torch.cuda.device: makes a GPU the current one for a while."""

        def __init__(self, gpu: torch.device) -> None:
            self.gpu = gpu.index

        def __enter__(self) -> None:
            self.before, current[0] = current[0], self.gpu

        def __exit__(self, *_) -> None:
            current[0] = self.before

    def is_bf16_supported(including_emulation: bool) -> bool:
        return current[0] == 1

    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.device_count", return_value=2),
        mock.patch("torch.cuda.device", Current),
        mock.patch("torch.cuda.is_bf16_supported", is_bf16_supported),
        mock.patch("torch.cuda.set_device", lambda gpu: current.append(gpu.index)),
    ):
        assert choose_precision("auto", torch.device("cuda", 0)) == "fp32"
        assert choose_precision("auto", torch.device("cuda", 1)) == "bf16"
        assert current == [0]
        machine = Machine("cuda", 1, "auto", 1, False)
    assert current == [0, 1]
    assert (machine.device.index, machine.precision) == (1, "bf16")


@pytest.mark.parametrize(("kind", "asynchronous"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_only_on_cuda_a_batch_is_copied_without_waiting(kind, asynchronous):
    machine = Machine("cpu", 0, "fp32", 1, False)
    machine.device = torch.device(kind)
    copied = mock.Mock()
    machine.move([copied])
    copied.to.assert_called_once_with(machine.device, non_blocking=asynchronous)


NCCL = "NCCL error in: ProcessGroupNCCL.cpp:3690, {}, NCCL version 2.30.7\n{}\nLast error:\n{}"
CUDA_FAILED = "ncclUnhandledCudaError: Call to CUDA function failed."
REMOTE = "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
MEMORY = [
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "cuFFT error: CUFFT_INTERNAL_ERROR",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
    NCCL.format(
        "unhandled cuda error (run with NCCL_DEBUG=INFO for details)", CUDA_FAILED, "Cuda failure 'out of memory'"
    ),
    NCCL.format("unhandled cuda error", CUDA_FAILED, "Failed to CUDA calloc async 608 bytes"),
]
LOST = [
    NCCL.format("remote process exited or there was a network error", REMOTE, "socketProgressOpt: Call to recv failed"),
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5, OpType=ALLREDUCE, Timeout(ms)=600000)",
    "NCCL communicator was aborted on rank 1.",
    "[pair.cc:534] Connection closed by peer [127.0.0.1]:33915",
    "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 60000ms for recv operation",
]
OTHER = [
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "CUDA error: device-side assert triggered",
    "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`",
    NCCL.format("invalid usage", "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.", ""),
]


@pytest.mark.parametrize("message", MEMORY)
@pytest.mark.parametrize("kind", [RuntimeError, torch.distributed.DistBackendError])
def test_memory_that_ran_out_in_any_library_is_told_with_what_to_do(monkeypatch, message, kind):
    for processes in (1, 2):
        monkeypatch.setattr(device, "processes", lambda processes=processes: processes)
        assert describe_failure(kind(message)).startswith("out of memory: ")


@pytest.mark.parametrize("message", LOST)
@pytest.mark.parametrize("kind", [RuntimeError, torch.distributed.DistBackendError])
def test_a_lost_process_is_told_and_only_where_there_are_several(monkeypatch, message, kind):
    assert describe_failure(kind(message)) is None
    monkeypatch.setattr(device, "processes", lambda: 2)
    assert describe_failure(kind(message)).startswith("another process of this run is gone")


@pytest.mark.parametrize("message", OTHER)
def test_any_other_failure_keeps_its_traceback(monkeypatch, message):
    monkeypatch.setattr(device, "processes", lambda: 2)
    assert describe_failure(torch.distributed.DistBackendError(message)) is None
