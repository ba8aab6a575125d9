"""Python imports this at the start of each process of the server, and only there: this folder is in its PYTHONPATH.

At a signal a process returns to the system what its heaps hold but do not use, and writes how many bytes they use, and
the names of its threads, to a file of its id in the folder SOAK_HEAPS. The server itself keeps up to 32 MiB unused, which come and go, and would hide a
leak of 1 % for hours. What is used but does not grow, while memory does, is fragmentation.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import threading

_libc = ctypes.CDLL(None)


class _Heaps(ctypes.Structure):
    """https://man7.org/linux/man-pages/man3/mallinfo.3.html"""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def _trim(*_: object) -> None:
    gc.collect()
    _libc.malloc_trim(0)
    _libc.mallinfo2.restype = _Heaps
    heaps = _libc.mallinfo2()
    used = {
        "heap_bytes": heaps.uordblks + heaps.hblkhd,
        "python_blocks": sys.getallocatedblocks(),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }
    if folder := os.environ.get("SOAK_HEAPS"):
        with open(os.path.join(folder, str(os.getpid())), "w") as file:
            json.dump(used, file)


signal.signal(signal.SIGRTMIN, _trim)
