"""Every process collects the same tests under the same names, whatever the clock and the hash seed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def collected(hash_seed: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-o", "addopts=-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.wide
def test_names_do_not_depend_on_the_clock_or_on_hashing():
    first = collected("1")
    time.sleep(1)  # what holds the second it was made in differs from here on
    assert first == collected("2")
    assert len(first) > 1000
    assert not [name for name in first if str(ROOT) in name or " at 0x" in name]
