"""`lfmim encoders` as a script, for `ray job submit -- python jobs/encoders.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["encoders", *sys.argv[1:]])
