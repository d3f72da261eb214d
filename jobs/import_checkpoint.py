"""`lfmim import checkpoint` as a script, as `ray job submit` takes it."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["import", "checkpoint", *sys.argv[1:]])
