"""`lfmim benchmark` as a script, for `ray job submit -- python jobs/benchmark.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["benchmark", *sys.argv[1:]])
