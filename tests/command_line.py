"""Runs the command line as its users do."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def recemb(*arguments: str, cwd: Path, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `recemb` with these arguments in a process of its own, which calls `before` first."""
    command = [sys.executable, "-m", "recemb", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, preexec_fn=before)
