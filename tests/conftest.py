"""What every test needs: the samples beside the tests, one thread, since processes share few cores, and Ctrl-C.

Sums come out alike only on as many threads.
"""

import os
import signal
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, here and in what the tests start

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "soak")]

torch.set_num_threads(1)

# A shell's background job ignores Ctrl-C, and so would every program that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
