"""How many threads the arithmetic of a server gets on a CPU, how they wait, and what the allocator keeps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# glibc gives large blocks back after each use; faulting them in again would take half of a CPU's time
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: torch sees the cores of the whole machine


def for_a_server() -> dict[str, str]:
    """The environment of a server; what the person at the keyboard has set stays.

    Threads that wait by spinning take the cores from each other: on two cores with two other busy programs a workflow
    of 4 s took 12 s with the defaults, sometimes minutes, and 5 s with threads that sleep.
    """
    return unless_set({**KEEP_MEMORY, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads())})


def keep_memory() -> dict[str, str]:
    return unless_set(KEEP_MEMORY)


def unless_set(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in os.environ}


def threads() -> int:
    """The idle cores of those that this process may use; half of them at least, for the load may be about to end."""
    usable = usable_cores()
    idle = (os.cpu_count() or 1) - round(load())
    return max(1, usable // 2, min(usable, idle))


def load() -> float:
    """How many cores of the machine were busy in the last minute; 0 if the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


def usable_cores() -> int:
    """The cores of the machine, or fewer if this process or its container is held to fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = QUOTA.read_text(encoding="ascii").split() if QUOTA.is_file() else []
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores
