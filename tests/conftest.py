"""What every test needs: the samples beside the tests, and one thread, since test processes share few cores."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1)
