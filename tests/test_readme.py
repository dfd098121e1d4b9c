"""What the README says is true: its table is fresh, its example runs, its new method works by adding one file."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import recemb

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, env=os.environ | environment, check=False
    )


def block_with(text: str) -> str:
    """The one block of Python that holds a text."""
    (found,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if text in block]
    return found


def test_the_table_of_methods_is_fresh():
    done = python("tools/update_readme.py", "--check", cwd=ROOT)
    assert done.returncode == 0, f"run tools/update_readme.py {done.stderr}"


def test_the_library_example_runs_and_prints_what_it_says(tmp_path: Path):
    block = block_with("CompressedEmbeddingBagCollection(")
    done = python("-W", "ignore", "-c", block, cwd=tmp_path)
    assert done.stdout.strip() == re.search(r"# (torch\.Size.*)", block)[1], done.stderr[-2000:]


def test_the_swapped_model_prints_what_it_says(tmp_path: Path):
    block = block_with("recemb.compress(")
    done = python("-W", "ignore", "-c", block, cwd=tmp_path)
    # All but the error's last digits, which another machine's random numbers and sums may change.
    wanted = [line[:-2] for line in re.findall(r"# (emb_item.*|torch\.Size.*)", block)]
    assert [line[:-2] for line in done.stdout.splitlines()] == wanted, done.stderr[-2000:]


@pytest.mark.wide
def test_the_new_method_passes_the_contract_and_trains(tmp_path: Path):
    """The section's one file and one line, in a copy of the project."""
    for name in ("recemb", "conf", "tests", "pyproject.toml"):
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        (shutil.copytree(source, tmp_path / name, ignore=ignore) if source.is_dir() else shutil.copy(source, tmp_path))
    # In a checkout recemb.conf is conf/; the copy has no installation to say so.
    shutil.copytree(tmp_path / "conf", tmp_path / "recemb" / "conf")
    (tmp_path / "recemb" / "tables" / "modulo.py").write_text(block_with("class ModuloConfig"), encoding="utf-8")
    init = tmp_path / "recemb" / "tables" / "__init__.py"
    init.write_text(init.read_text().replace("    hashing,\n", "    hashing,\n    modulo,\n"))
    here = {"PYTHONPATH": str(tmp_path)}
    contract = python("-m", "pytest", "tests/test_contract.py", "-k", "modulo", cwd=tmp_path, **here)
    assert contract.returncode == 0, contract.stdout[-3000:]
    assert "passed" in contract.stdout
    where = python("-c", "import recemb.tables.modulo as h; print(h.__file__)", cwd=tmp_path, **here)
    assert where.stdout.strip() == str(tmp_path / "recemb" / "tables" / "modulo.py")
    trained = python(
        "-m",
        "recemb",
        "train",
        "table=modulo",
        "budget=1/4",
        "dataset.rows=20000",
        "trainer.epochs=1",
        cwd=tmp_path,
        **here,
    )
    assert "modulo: test AUC" in trained.stdout, trained.stderr[-2000:]


def test_the_python_commands_it_shows_exist():
    shown = set(re.findall(r"^recemb (\w+)", README, re.MULTILINE))
    assert shown == {"plan", "prepare", "inspect", "advise", "train", "compress", "export", "report"}


@pytest.mark.wide
def test_a_table_of_one_s_own_goes_through_five_commands(tmp_path: Path):
    """Five columns, one of several values, through the commands as they are shown."""
    random = np.random.default_rng(0)
    rows = 3000
    users, items = (random.zipf(1.3, rows).clip(max=most) for most in (400, 150))
    tags = ["|".join(f"t{one}" for one in random.integers(0, 30, random.integers(0, 4))) for _ in range(rows)]
    clicked = random.random(rows) < 1 / (1 + np.exp(1.0 - (users % 3) + (items % 2)))
    frame = {"clicked": clicked.astype(int), "user": users, "item": items, "tags": tags, "at": np.arange(rows)}
    (tmp_path / "clicks").mkdir()
    pd.DataFrame(frame).to_csv(tmp_path / "clicks" / "one.csv", index=False)
    (tmp_path / "clicks.yaml").write_text(
        'label: clicked\ncategorical: [user, item]\nmulti_valued: {tags: "|"}\nsplit: {time: at}\n'
    )
    section = README[README.index("## Your own data") :]
    commands = re.findall(r"^recemb .*clicks.*", section, re.MULTILINE)
    assert [shlex.split(one)[1] for one in commands] == ["prepare", "inspect", "advise", "train", "report", "export"]
    for command in commands:
        done = recemb(*shlex.split(command)[1:], cwd=tmp_path)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    plan = json.loads((tmp_path / "clicks.json").read_text())
    record = json.loads((tmp_path / "runs" / "clicks" / "first" / "run.json").read_text())
    assert record["bytes"]["tables_serving"] <= plan["budget_bytes"]
    assert {one["name"] for one in plan["advice"]["features"]} == {"user", "item", "tags"}
    served = python(
        "-c",
        "import recemb; print(recemb.load('carry').predict({'user': 3, 'item': 'never seen', 'tags': ['t1', 't7']}))",
        cwd=tmp_path,
    )
    assert re.search(r"0\.\d+", served.stdout), served.stderr[-2000:]
