"""Run a module that ends when the process that started it is gone, even by SIGKILL.

    python -m flows.tied MODULE ARGUMENTS…

What started it is named by the environment (`TUNEWRIGHT_PARENT`), and it runs in a process group of its own.
"""

from __future__ import annotations

import runpy
import signal
import sys

from tunewright.stage import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
