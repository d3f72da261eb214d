"""`lfmim demo` as a script, for `ray job submit -- python jobs/demo.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["demo", *sys.argv[1:]])
