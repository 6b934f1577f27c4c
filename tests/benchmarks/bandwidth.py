"""How fast this machine reads memory, the limit of decoding: every weight is read once a token."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

N_BYTES = 1 << 28  # a thread's array: several times a cache
N_READS = 3


def read_bandwidth(threads: int) -> float:
    """Bytes per second, the best of a few reads.

    Each thread has an array of 256 MiB of its own and takes the bitwise or of its 64-bit words, which is
    bound by memory: numpy releases the lock, and a word costs less than a cycle.
    """
    arrays = [np.ones(N_BYTES // 8, np.int64) for _ in range(threads)]
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(N_READS):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, arrays))
            seconds.append(time.perf_counter() - start)
    return threads * N_BYTES / min(seconds)
