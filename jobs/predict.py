"""`lfmim predict` as a script, for `ray job submit -- python jobs/predict.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["predict", *sys.argv[1:]])
