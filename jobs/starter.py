"""`lfmim starter` as a script, for `ray job submit -- python jobs/starter.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["starter", *sys.argv[1:]])
