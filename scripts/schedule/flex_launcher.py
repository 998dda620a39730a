"""Dataflow's Flex Template launcher runs this file with flags and without a command: it adds `embed`."""

import sys

from audioclip_text.pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
