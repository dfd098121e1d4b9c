"""Write the README's table of methods from the registry; with --check, only say whether it is stale (exit status 1)."""

import argparse
import sys
from pathlib import Path

from recemb import list_tables
from recemb.options import options_of

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- methods -->\n", "<!-- /methods -->\n"


def methods() -> str:
    """The table, in the order of registration."""
    lines = ["| `table=` | what it does | options and defaults | paper |", "|---|---|---|---|"]
    for method in list_tables():
        options = ", ".join(
            f"`{option.name}={'null' if option.default is None else option.default}`"
            for option in options_of(method.config)
        )
        lines.append(f"| `{method.name}` | {method.summary} | {options} | {method.paper or '–'} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    fresh = before + BEGIN + methods() + END + after
    if fresh != text and not check:
        README.write_text(fresh, encoding="utf-8")
    return int(check and fresh != text)


if __name__ == "__main__":
    sys.exit(main())
