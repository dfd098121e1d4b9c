"""Virtual environments that hold some of the installed packages and nothing else."""

import re
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path


def isolated_python(folder: Path, packages: list[str]) -> Callable[[str, Path], subprocess.CompletedProcess[str]]:
    """Make a fresh virtual environment with these packages and what they need, linked from the one the tests run in.

    Returns:
        A function that runs a text of Python in a folder.
    """
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for one in _with_requirements(packages):
        tops = {Path(str(path)).parts[0] for path in one.files or [] if not str(path).startswith("..")}
        for top in tops - {"__pycache__"}:
            source, target = Path(str(one.locate_file(top))), site / top
            if source.exists() and not target.exists():
                target.symlink_to(source, target_is_directory=source.is_dir())

    def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "bin" / "python"), "-I", "-c", code]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)

    assert Path(sys.prefix) != folder
    return run


def _with_requirements(packages: list[str]) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    queue = list(packages)
    while queue:
        name = queue.pop()
        try:
            one = distribution(name)
        except PackageNotFoundError:
            continue
        if one.metadata["Name"] in found:
            continue
        found[one.metadata["Name"]] = one
        # Extras are left out; other conditions (of platforms) are tried, and what is not installed is not needed.
        queue += [
            re.split(r"[ ;<>=!~\[(]", requirement)[0]
            for requirement in one.requires or []
            if "extra ==" not in requirement
        ]
    return list(found.values())
