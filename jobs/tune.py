"""`lfmim tune` as a script, for `ray job submit -- python jobs/tune.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["tune", *sys.argv[1:]])
