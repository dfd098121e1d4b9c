"""`python -m recemb` is `recemb`."""

import sys

from recemb.cli import main

sys.exit(main())
