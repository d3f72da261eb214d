"""`lfmim simulate` as a script, for `ray job submit -- python jobs/simulate.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["simulate", *sys.argv[1:]])
