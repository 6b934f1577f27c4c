"""`python -m runtime` is the command `gpt2-edge`."""

import sys

from runtime.cli import main

sys.exit(main())
