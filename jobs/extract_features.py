"""`lfmim extract` as a script, for `ray job submit -- python jobs/extract_features.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["extract", *sys.argv[1:]])
