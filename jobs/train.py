"""`lfmim train` as a script, for `ray job submit -- python jobs/train.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["train", *sys.argv[1:]])
