"""`lfmim submit` as a script, for `ray job submit -- python jobs/submit.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["submit", *sys.argv[1:]])
