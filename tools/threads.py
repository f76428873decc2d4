"""How many threads the arithmetic of a server gets on a CPU, how they wait, and what the allocator keeps."""

from __future__ import annotations

import os
from pathlib import Path

# glibc gives large blocks back after each use; faulting them in again would take half of a CPU's time
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: torch sees the cores of the whole machine


def for_a_server() -> dict[str, str]:
    """The environment of a server; what the person at the keyboard has set stays.

    Threads that wait by spinning take the cores from each other: on two cores with two other busy programs a workflow
    of 4 s took 12 s with the defaults, sometimes minutes, and 5 s with threads that sleep.
    """
    chosen = {**KEEP_MEMORY, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(idle_cores())}
    return {name: value for name, value in chosen.items() if name not in os.environ}


def idle_cores() -> int:
    """The cores that this process may use, less those that others keep busy; one at least."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, usable_cores() - round(busy))


def usable_cores() -> int:
    """The cores of the machine, or fewer if this process or its container is held to fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if QUOTA.is_file():
        quota, period = QUOTA.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores
