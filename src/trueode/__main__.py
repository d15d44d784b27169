"""``python -m trueode``: the command line."""

import sys

from trueode.cli.main import main

sys.exit(main())
