"""Run `audioclip-text embed` for Dataflow's Flex Template launcher, which passes flags and no command."""

import sys

from audioclip_text.pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
