"""`python -m audioclip_beam.pipeline` is the console script `audioclip`."""

import sys

from .cli import main

sys.exit(main())
