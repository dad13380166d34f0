"""``python -m next_scale``: the command `next-scale`."""

import sys

from next_scale.compare.cli import main

sys.exit(main())
