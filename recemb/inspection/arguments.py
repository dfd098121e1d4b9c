"""The command line of `recemb inspect`: a folder, where results go, and options as `recemb plan` takes them."""

import argparse
from pathlib import Path
from typing import NamedTuple

from recemb.options import RecembError
from recemb.overrides import folder_and_options, group_of

_GROUPS = ("table", "budget", "precision", "model")
_OF_A_PLAN = ("table", "budget", "precision")


class Asked(NamedTuple):
    """What was asked for.

    Attributes:
        dataset: folder of the prepared data set.
        options: of a plan, for Hydra.
        with_plan: whether to say what ids share under that plan; the width of vectors alone asks for none.
        as_json: print JSON.
        out: folder to write to, or None.
    """

    dataset: Path
    options: list[str]
    with_plan: bool
    as_json: bool
    out: Path | None


def read_arguments(arguments: list[str]) -> Asked:
    """Read the arguments after the verb; `--help` and unknown flags end the program as argparse does.

    Raises:
        RecembError: not one folder, or an option that is none of a plan's tables.
    """
    parsed = inspect_parser().parse_intermixed_args(arguments)
    folder, options = folder_and_options(parsed.given, "recemb inspect DATASET")
    if foreign := [one for one in options if group_of(one) not in _GROUPS]:
        raise RecembError(
            f"{foreign[0]} is no option of recemb inspect: it takes {', '.join(_GROUPS)} and their options as recemb "
            "plan does; the data set is the folder."
        )
    return Asked(folder, options, any(group_of(one) in _OF_A_PLAN for one in options), parsed.json, parsed.out)


def inspect_parser() -> argparse.ArgumentParser:
    """The arguments of `recemb inspect`."""
    parser = argparse.ArgumentParser(
        prog="recemb inspect",
        usage="recemb inspect DATASET [--json] [--out DIR] [table=TABLE] [budget=BUDGET] [precision=PRECISION] "
        "[GROUP.OPTION=VALUE ...]",
        description="Say what a prepared data set asks of embedding tables, before anything is trained: which "
        "features hold the bytes, what their tails carry, what test rows show that training does not, what drifts, and "
        "what tells the label. With a table, also what its ids share: collisions by traffic, updates from other ids, "
        "and cells with a vector of their own.",
    )
    parser.add_argument(
        "given",
        nargs="+",
        metavar="DATASET",
        help="folder of a prepared data set; beside it table=, budget=, precision= and model.embedding_dim=, as "
        "`recemb plan --help` lists them",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document for programs")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write inspect.html, inspect.json and pictures to this folder, too"
    )
    return parser
