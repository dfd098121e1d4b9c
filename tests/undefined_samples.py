"""Small prepared data sets whose splits have too few rows, or rows of one label, for an AUC."""

import random
from pathlib import Path

from recemb.datasets import TabularConfig, prepare

COLUMNS = "label: y\ndense: [age]\ncategorical: [user, item]\nmulti_valued: {tags: '|'}\nsplit: {column: part}\n"
TINY = ["dataset=tabular", "trainer.epochs=1", "trainer.batch_size=32", "model.embedding_dim=4"]


def prepare_rows(folder: Path, rows: int = 60, **splits: tuple[int, int | None]) -> Path:
    """Prepare random rows.

    Args:
        folder: where they go.
        rows: of training, of both labels.
        splits: how many rows `valid` and `test` have, and their only label; None for both labels.

    Returns:
        The prepared data set.
    """
    draw = random.Random(1)
    lines = ["y,age,user,item,tags,part"]
    for part, (count, label) in {"train": (rows, None), "valid": (12, None), "test": (12, None), **splits}.items():
        for row in range(count):
            tags = "|".join(draw.choices("abc", k=row % 3))
            values = (draw.randint(20, 60), f"u{draw.randint(0, 8)}", draw.randint(0, 6), tags)
            lines.append(",".join(map(str, (row % 2 if label is None else label, *values, part))))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    (folder / "columns.yaml").write_text(COLUMNS)
    source, columns = str(folder / "rows.csv"), str(folder / "columns.yaml")
    path = folder / "data"
    prepare(TabularConfig(source=source, columns=columns, path=str(path), min_count=1), progress=False)
    return path
