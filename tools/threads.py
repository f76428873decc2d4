"""How many threads the arithmetic of a server gets on a CPU, and what its allocator keeps."""

from __future__ import annotations

# glibc gives large blocks back after each use; faulting them in again would take half of a CPU's time
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}


def computing() -> dict[str, str]:
    return {**KEEP_MEMORY}
