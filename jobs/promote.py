"""`lfmim promote` as a script, for `ray job submit -- python jobs/promote.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["promote", *sys.argv[1:]])
