"""`python -m lfmim`: the command line where no script is installed, as in a submitted job."""

from lfmim.cli.main import main

main()
