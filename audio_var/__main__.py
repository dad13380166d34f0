"""`python -m audio_var` is `audio-var`."""

import sys

from audio_var.cli import main

if __name__ == "__main__":
    sys.exit(main())
