"""Evaluate and analyse models; python eval.py --help lists the commands."""

import sys

from visionattn.cli.errors import run
from visionattn.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(run(main))
