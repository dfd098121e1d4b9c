"""The command line of `recemb advise`: a folder, a budget, where the plan goes, and options as training takes them."""

import argparse
from pathlib import Path
from typing import NamedTuple

from recemb.budget import parse_budget
from recemb.options import RecembError
from recemb.overrides import folder_and_options, group_of
from recemb.tables.precision import PRECISIONS

_GROUPS = ("model", "trainer")


class Asked(NamedTuple):
    """What was asked for.

    Attributes:
        dataset: folder of the prepared data set.
        budget: serving bytes of all tables, as `parse_budget` reads them.
        trials: trainings that the plan may be chosen by.
        coarsest: coarsest precision that rows may be held in.
        seed: of the trials.
        out: the plan's file.
        overwrite: replace it.
        as_json: print JSON.
        options: of the backbone and of training, for Hydra.
    """

    dataset: Path
    budget: str
    trials: int
    coarsest: str
    seed: int
    out: Path
    overwrite: bool
    as_json: bool
    options: list[str]

    @property
    def trials_folder(self) -> Path:
        """Where trials are made, and kept while an advice is unfinished."""
        return self.out.with_name(self.out.name + ".trials")


def read_arguments(arguments: list[str]) -> Asked:
    """Read the arguments after the verb; `--help` and unknown flags end the program as argparse does.

    Raises:
        RecembError: not one folder, no budget, or an option of something else than the backbone or training.
    """
    parsed = advise_parser().parse_intermixed_args(arguments)
    folder, options = folder_and_options(parsed.given, "recemb advise DATASET --budget 64MiB")
    if foreign := [one for one in options if group_of(one) not in _GROUPS]:
        raise RecembError(
            f"{foreign[0]} is no option of recemb advise: beside its flags it takes {' and '.join(_GROUPS)} and their "
            "options, as recemb train does."
        )
    if parsed.trials < 0:
        raise RecembError(f"--trials {parsed.trials} must be 0 or more.")
    if not 0 <= parsed.seed < 2**63:
        raise RecembError(f"--seed {parsed.seed} must be at least 0 and below 2**63.")
    parse_budget(parsed.budget, 1 << 62)  # an unreadable one is told before any row is read
    return Asked(
        folder, parsed.budget, parsed.trials, parsed.coarsest, parsed.seed, parsed.out, parsed.overwrite,
        parsed.json, options,
    )  # fmt: skip


def advise_parser() -> argparse.ArgumentParser:
    """The arguments of `recemb advise`."""
    parser = argparse.ArgumentParser(
        prog="recemb advise",
        usage="recemb advise DATASET --budget BUDGET [--trials N] [--out PLAN] [--json] [model=MODEL] "
        "[GROUP.OPTION=VALUE ...]",
        description="Choose how to spend a budget of bytes on a data set's tables: which ids of each feature get rows, "
        "how wide they are and how finely they are held, or which single method. Every choice is explained, and the "
        "plan is a file that `recemb train plan=PLAN` trains. Without trials it is made from how often ids occur and "
        "what they tell about the label. With trials the first one trains full tables, whose vectors then say what "
        "each block of ids is worth; the second and third train the plans made of that, without and with projections, "
        "and each further one a single method within the same budget; what is best on validation rows is taken. No "
        "choice depends on test rows. Stopped trials go on when the same command is given again.",
    )
    parser.add_argument(
        "given",
        nargs="+",
        metavar="DATASET",
        help="folder of a prepared data set; beside it options of the backbone (model=dcn_v2) and of training "
        "(trainer.table_lr=0.1), as `recemb train --help` lists them",
    )
    parser.add_argument(
        "--budget", required=True, help="serving bytes of all tables: a share of the full ones (1/16) or a size (64MiB)"
    )
    parser.add_argument("--trials", type=int, default=0, metavar="N", help="trainings to choose by (default: 0, none)")
    parser.add_argument(
        "--coarsest", choices=PRECISIONS, default="int8", help="coarsest precision rows may be held in (default: int8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the trials (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("plan.json"), metavar="PLAN", help="the plan's file (default: plan.json)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a plan that is there")
    parser.add_argument("--json", action="store_true", help="print the plan as one JSON document, too")
    return parser
