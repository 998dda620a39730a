"""Run `audioclip embed` for Dataflow's Flex Template launcher, which passes flags and no command."""

import os
import sys

from audioclip_beam.pipeline.cli import main

if __name__ == "__main__":
    os.environ["AUDIOCLIP_BEAM_FLEX_LAUNCHER"] = "1"  # elsewhere --template_location is refused
    sys.exit(main(["embed", *sys.argv[1:]]))
