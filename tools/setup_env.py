"""Make `.venv` with recemb and the torch / torchrec / FBGEMM versions that belong together on this machine.

Run by `make setup` with any Python that is new enough; needs nothing but the standard library. When everything is
already in place it changes nothing. Environment variables that steer it:

    RECEMB_TORCH   2.13 (default), 2.12 or 2.11: which line of torch to install
    RECEMB_DEVICE  cpu or cuda: overrides the search for an NVIDIA GPU
    PIP_*          pip's own settings, among them the index to take packages from: on an index whose plain torch is
                   the CUDA build, point PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS at a CPU build to save gigabytes; the
                   CUDA build works on a CPU too
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "recemb-setup.json"
UNFINISHED = VENV / "recemb-setup.unfinished"
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)

# FBGEMM's operators are compiled against one torch, and torchrec calls one FBGEMM.
TRIPLES = {
    "2.13": {"torch": "2.13.0", "fbgemm": "1.8.0", "torchrec": "1.8.0"},
    "2.12": {"torch": "2.12.0", "fbgemm": "1.7.0", "torchrec": "1.7.0"},
    "2.11": {"torch": "2.11.0", "fbgemm": "1.6.0", "torchrec": "1.6.1"},
}


def stop(sentence: str) -> None:
    """End the set-up with one sentence for a person."""
    raise SystemExit(f"setup: {sentence}")


def find_device() -> str:
    """Name the build to install: `cuda` where an NVIDIA driver answers, else `cpu`."""
    chosen = os.environ.get("RECEMB_DEVICE")
    if chosen not in (None, "", "cpu", "cuda"):
        stop(f"RECEMB_DEVICE is {chosen!r}; it takes cpu or cuda.")
    if chosen:
        return chosen
    if shutil.which("nvidia-smi"):
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and "GPU" in answer.stdout:
            return "cuda"
    return "cpu"


def wanted_state() -> dict[str, str]:
    """Describe the environment this checkout needs; what nobody asked for is left to what is there."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = {"project": project["project"], "packages": project["tool"]["setuptools"]}
    return {"requirements": hashlib.sha256(json.dumps(project).encode()).hexdigest(), "root": str(ROOT)} | {
        name: asked for name in ("device", "torch") if (asked := os.environ.get(f"RECEMB_{name.upper()}"))
    }


def is_ready(wanted: dict[str, str]) -> bool:
    """Whether `.venv` is in the wanted state already."""
    try:
        there = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (VENV / "bin" / "recemb").exists() and all(there.get(name) == value for name, value in wanted.items())


def pip(step: str, *arguments: str) -> None:
    """Run the environment's pip, with its own progress bars, and stop with its last words when it fails."""
    print(f"setup: {step}", flush=True)
    quiet = [] if sys.stdout.isatty() else ["--progress-bar", "off"]
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *quiet, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        for text in process.stdout:
            said.append(text)
            # pip names every requirement twice; what it fetches and installs is what a person waits for.
            if text.startswith(("Downloading", "  Downloading", "Installing", "ERROR")):
                print("  " + text.strip(), flush=True)
    if process.returncode:
        sys.stderr.write("".join(said[-15:]))
        stop(f"pip failed while it {step}; its last words are above. Is a package index within reach?")


def make_venv() -> None:
    """Create `.venv` anew, and say what is missing where Python comes without its venv parts."""
    if VENV.exists() and not (STAMP.exists() or UNFINISHED.exists()):
        stop(f"{VENV} was not made by this set-up and will not be touched; move it away and run this again.")
    try:
        venv.create(VENV, with_pip=True, clear=True)
    except (subprocess.CalledProcessError, OSError) as error:
        shutil.rmtree(VENV, ignore_errors=True)
        version = "{}.{}".format(*sys.version_info)
        stop(f"cannot create {VENV} ({error}). On Debian and Ubuntu, install python{version}-venv and run this again.")
    except KeyboardInterrupt:
        shutil.rmtree(VENV, ignore_errors=True)
        raise
    UNFINISHED.touch()


def main() -> None:
    """Bring `.venv` to the wanted state."""
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        stop(
            f"this is Python {sys.version.split()[0]}; recemb needs {'.'.join(map(str, OLDEST_PYTHON))} to "
            f"{'.'.join(map(str, NEWEST_PYTHON))}. Name another with `make setup PYTHON=python3.12`."
        )
    wanted = wanted_state()
    if is_ready(wanted):
        return
    started = time.monotonic()
    line, device = wanted.get("torch", "2.13"), find_device()
    if line not in TRIPLES:
        stop(f"RECEMB_TORCH is {line!r}; it takes one of {', '.join(TRIPLES)}.")
    versions = TRIPLES[line]
    print(f"setup: making {VENV} for {device} with Python {sys.version.split()[0]}, torch {versions['torch']}")
    make_venv()
    fbgemm = "fbgemm-gpu" if device == "cuda" else "fbgemm-gpu-cpu"
    pip("installs torch", f"torch=={versions['torch']}")
    pip(f"installs recemb and {fbgemm}", "-e", f".[{device},dev]", f"{fbgemm}=={versions['fbgemm']}")
    # --no-deps: torchrec's metadata would bring an unpinned CUDA build of FBGEMM.
    pip("installs torchrec", "--no-deps", f"torchrec=={versions['torchrec']}")
    check = subprocess.run([str(VENV / "bin" / "recemb"), "tables"], capture_output=True, text=True, check=False)
    if check.returncode:
        stop(f"everything is installed, but `recemb tables` fails:\n{check.stderr.strip()[-2000:]}")
    state = {**wanted, "device": device, "torch": line, "python": sys.version.split()[0]}
    UNFINISHED.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    os.replace(UNFINISHED, STAMP)
    print(f"setup: ready in {time.monotonic() - started:.0f} s: .venv/bin/recemb")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop("interrupted; the next run starts clean.")
