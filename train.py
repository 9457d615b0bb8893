"""Train, validate, test and apply models; python train.py --help lists the commands."""

import sys

from visionattn.cli.errors import run
from visionattn.cli.train import main

if __name__ == "__main__":
    sys.exit(run(main))
