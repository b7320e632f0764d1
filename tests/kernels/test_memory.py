"""Memory: what a batch frees is there for the next one."""

import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, resource, sys, numpy
from fourm_ser.kernels.memory import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: every page is a fault of its own
if sys.argv[1] == "keep":
    keep_freed_memory()


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def batch():
    tensors = [numpy.ones(size * 250_000) for size in (3, 11, 5)]  # of 6, 22 and 10 MB
    return sum(tensor[-1] for tensor in tensors)


batch()
before = faults()
for _ in range(5):
    batch()
print((faults() - before) * resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    cleared = {}  # bytes
    for how in ("keep", "as it is"):
        done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
        cleared[how] = int(done.stdout)
    assert cleared["as it is"] > 20e6
    assert cleared["keep"] < cleared["as it is"] / 10
