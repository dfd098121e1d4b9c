"""`recemb`, and `python -m recemb`: the command line, with a Ctrl-C while torch is being imported told in one line."""

import sys


def main() -> int:
    """Run the command line and return its exit status."""
    try:
        from recemb.cli import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("recemb: interrupted.\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
