"""`lfmim evaluate` as a script, for `ray job submit -- python jobs/evaluate.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["evaluate", *sys.argv[1:]])
