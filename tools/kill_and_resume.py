"""Kills processes of a run at random moments, resumes it, and compares what comes out with a run that nobody disturbed.

    .venv/bin/python tools/kill_and_resume.py FOLDER --kills 20 --ranks 2 -- dataset=synthetic table=hashing ...

What follows `--` are the options of `recemb train`. Each time one process, chosen at random, gets SIGKILL at a moment
chosen at random, at times while a state is being saved: give a small trainer.checkpoint_steps. Then torchrun must end
within a minute, and `recemb train resume=FOLDER` must go on. At the end the metrics must be those of the run that was
left alone, to the last bit.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm


def command(ranks: int, options: list[str]) -> list[str]:
    """The command that trains with so many processes."""
    python = [sys.executable, "-m"]
    launch = [*python, "torch.distributed.run", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else python
    return [*launch, "recemb", "train", *options]


def children(process: int) -> list[int]:
    """The processes that one has started."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8")
    return [int(one) for one in text.split()]


def kill_at(ranks: int, options: list[str], seconds: float, log: Path) -> tuple[str, float]:
    """Start a run, kill one of its processes so many seconds after it began to train.

    Returns:
        What was killed, or that the run was over before, and how long the rest took to end.
    """
    with log.open("ab") as out:
        run = subprocess.Popen(command(ranks, options), stdout=out, stderr=out)
        folder = Path(next(one for one in options if one.startswith(("resume=", "hydra.run.dir="))).split("=", 1)[1])
        begun = time.monotonic()
        before = (folder / "run.json").stat().st_mtime if (folder / "run.json").exists() else 0.0
        while run.poll() is None and time.monotonic() - begun < 120:
            if (folder / "run.json").exists() and (folder / "run.json").stat().st_mtime > before:
                break
            time.sleep(0.05)
        deadline = time.monotonic() + seconds
        while run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if run.poll() is not None:
            return "over", 0.0
        victims = children(run.pid) if ranks > 1 else [run.pid]
        rank = random.randrange(len(victims))
        os.kill(victims[rank], signal.SIGKILL)
        clock = time.monotonic()
        run.wait(timeout=60)
        return f"process {rank}", time.monotonic() - clock


def record_of(folder: Path) -> dict[str, Any]:
    """The record of a run."""
    found: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return found


def states_of(folder: Path) -> str:
    """Say which states a broken run has, and which were being written."""
    names = sorted(path.name for path in (folder / "unfinished").glob("*"))
    return " ".join(name.replace("-0000", "-") for name in names) or "nothing"


def main() -> int:
    """Run it all; the exit status says whether the metrics are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the two runs go")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="+", help="options of recemb train, after --")
    given = parser.parse_args()
    random.seed(given.seed)
    alone, broken = given.folder / "undisturbed", given.folder / "killed"
    given.folder.mkdir(parents=True, exist_ok=True)
    log = given.folder / "log.txt"
    options = given.options if given.ranks == 1 else ["trainer.sharding=auto", *given.options]
    clock = time.monotonic()
    with log.open("ab") as out:
        ending = [f"hydra.run.dir={alone}", "overwrite=true"]
        subprocess.run(command(given.ranks, [*options, *ending]), stdout=out, stderr=out, check=True)
    length = record_of(alone)["seconds"]
    print(f"undisturbed: {length:.0f} s of {time.monotonic() - clock:.0f} s: {record_of(alone)['metrics']['test']}")
    begin = start = [*options, f"hydra.run.dir={broken}"]
    slowest = 0.0
    for number in tqdm(range(given.kills), desc="kills"):
        while True:
            seconds = random.uniform(0, length)
            what, took = kill_at(given.ranks, start, seconds, log)
            if what != "over":
                break
            shutil.rmtree(broken)  # it was too quick; begin it anew
            start = begin
        slowest = max(slowest, took)
        tqdm.write(
            f"{number + 1}: {what} killed {seconds:.2f} s after it began, all ended {took:.1f} s later; "
            f"left: {states_of(broken)}"
        )
        start = [f"resume={broken}"]
    with log.open("ab") as out:
        subprocess.run(command(given.ranks, start), stdout=out, stderr=out, check=True)
    same = record_of(alone)["metrics"] == record_of(broken)["metrics"]
    print(f"killed {given.kills} times, slowest end {slowest:.1f} s: {record_of(broken)['metrics']['test']}")
    print("the same to the last bit" if same else "NOT the same")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
