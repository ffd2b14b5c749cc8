"""Memory of tensors on the CPU: kept by the process between two steps, instead of being given back and fetched anew."""

from __future__ import annotations

import ctypes

# mallopt(3): of glibc's malloc.h, and the most that M_MMAP_THRESHOLD may be on 64 bits
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
LARGEST_MMAP_THRESHOLD, NEVER = 32 * 2**20, 2**31 - 1
# A thread that is not the first one has its memory in heaps of 64 MiB, and an empty one goes back whatever
# M_TRIM_THRESHOLD says, unless less than M_TOP_PAD would be left (malloc/arena.c, heap_trim): measured, Ray Train's
# thread had 10,000 faults a second without this.
TWO_HEAPS = 128 * 2**20


def keep_freed_memory() -> None:
    """Tell glibc to keep the blocks that are freed, up to 32 MiB each; nothing where another libc is in use.

    By default it maps large ones anew each time, and a training step then spends a fifth of its time in page faults
    (mobilenet_v3_small, batches of 128 at 32x32: 20,000 faults a step). The process stays as large as it once was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(TRIM_THRESHOLD, NEVER)
        mallopt(TOP_PAD, TWO_HEAPS)
