"""`lfmim inspect` as a script, for `ray job submit -- python jobs/inspect_features.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["inspect", *sys.argv[1:]])
