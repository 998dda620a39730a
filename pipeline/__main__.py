"""`python -m audioclip_text.pipeline` is the console script `audioclip-text`."""

import sys

from .cli import main

sys.exit(main())
