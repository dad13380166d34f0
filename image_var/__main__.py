"""`python -m image_var` is `image-var`."""

import sys

from image_var.cli import main

if __name__ == "__main__":
    sys.exit(main())
