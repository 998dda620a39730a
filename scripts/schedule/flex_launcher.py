"""Run `audioclip-text embed` for Dataflow's Flex Template launcher, which passes flags and no command."""

import os
import sys

from audioclip_text.pipeline.cli import main

if __name__ == "__main__":
    os.environ["AUDIOCLIP_TEXT_FLEX_LAUNCHER"] = "1"  # elsewhere --template_location is refused
    sys.exit(main(["embed", *sys.argv[1:]]))
