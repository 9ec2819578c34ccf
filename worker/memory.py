"""Whether an exception says that memory ran out: the device's or the host's.

By type, and by the codes of errors, which libraries that have one type for all errors put at a
known place: an attribute, or the message. Nobody's module is imported for that: classes are known
by their names and those of their modules. Called for what user code raised.

Out of memory is the fault of a task only where the task was alone. What else takes memory: the
other tasks of a batch, inputs that are loaded ahead, what an earlier call left behind, another rank
on the device. So a task that met it is run once more, alone, before it fails (see `execute`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from gpuspool.worker.causes import causes

# Codes that stand in messages of RuntimeError, and of classes below it, for want of a type: of
# torch where a library of NVIDIA's or AMD's could not allocate, and of its allocators that have no
# type of their own (MPS, pinned memory), of onnxruntime.
_DEVICE_CODES = (
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_ALLOC_FAILED",
    "HIPBLAS_STATUS_ALLOC_FAILED",
    "miopenStatusAllocFailed",
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
    "MPS backend out of memory",
    "CUDA failure 2:",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
)
# The same for memory of the host: torch's allocator for the CPU raises a plain RuntimeError.
_HOST_CODES = ("DefaultCPUAllocator: can't allocate memory",)
# What CUDA calls cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY, as a number.
_CUDA_OUT_OF_MEMORY = 2


def is_device_oom(raised: BaseException) -> bool:
    """Whether the memory of the device ran out, says this exception or one behind it."""
    return any(map(_is_of_device, causes(raised)))


def is_host_oom(raised: BaseException) -> bool:
    """Whether the memory of the host ran out, says this exception or one behind it."""
    return any(map(_is_of_host, causes(raised)))


def _is_of_device(error: BaseException) -> bool:
    for kind in type(error).__mro__:
        test = _TESTS.get(_name(kind))
        if test is not None:
            return test(error)
    return False


def _is_of_host(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return not _is_of_device(error)
    # A fork, or a mapping, that the system had no memory for.
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return type(error) is RuntimeError and _names(error, _HOST_CODES)


def _name(kind: type) -> tuple[str, str]:
    """The package that a class comes from, and its name there."""
    # A class that `exec` made may come from nowhere.
    module = getattr(kind, "__module__", None)
    package = module.partition(".")[0] if isinstance(module, str) else ""
    return package, kind.__name__


def _always(_: BaseException) -> bool:
    return True


def _has_status(error: BaseException) -> bool:
    """XLA has one type for all errors; their messages begin with the status."""
    return _text(error).startswith("RESOURCE_EXHAUSTED")


def _has_code(error: BaseException) -> bool:
    """CUDA's number, as an attribute: `error_code` of torch, `status` of cupy, `code` of numba."""
    for name in ("error_code", "status", "code"):
        number = getattr(error, name, None)
        if isinstance(number, int):
            return number == _CUDA_OUT_OF_MEMORY
    return _names_code(error)


def _names_code(error: BaseException) -> bool:
    return _names(error, _DEVICE_CODES)


def _is_of_rmm(error: BaseException) -> bool:
    """RAPIDS raises Python's own MemoryError for the device's memory, with this at the front."""
    return _text(error).startswith("std::bad_alloc: out_of_memory")


def _names(error: BaseException, codes: tuple[str, ...]) -> bool:
    text = _text(error)
    return any(code in text for code in codes)


def _text(error: BaseException) -> str:
    """The message, where it is a plain text: the class's own `__str__` may do anything."""
    if error.args and isinstance(error.args[0], str):
        return error.args[0]
    return ""


# (package, class) -> whether an exception of it, or of a class below it, says that the device's
# memory ran out.
_TESTS: dict[tuple[str, str], Callable[[BaseException], bool]] = {
    ("torch", "OutOfMemoryError"): _always,
    ("torch", "AcceleratorError"): _has_code,
    ("cupy", "OutOfMemoryError"): _always,
    ("cupy_backends", "CUDARuntimeError"): _has_code,
    ("cupy_backends", "CUDADriverError"): _has_code,
    ("numba", "CudaAPIError"): _has_code,
    ("pycuda", "MemoryError"): _always,
    ("tensorflow", "ResourceExhaustedError"): _always,
    ("jaxlib", "XlaRuntimeError"): _has_status,
    ("jaxlib", "JaxRuntimeError"): _has_status,
    ("jax", "JaxRuntimeError"): _has_status,
    ("onnxruntime", "RuntimeException"): _names_code,
    ("builtins", "RuntimeError"): _names_code,
    ("builtins", "MemoryError"): _is_of_rmm,
}
