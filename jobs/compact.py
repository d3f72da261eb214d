"""`lfmim compact` as a script, for `ray job submit -- python jobs/compact.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["compact", *sys.argv[1:]])
