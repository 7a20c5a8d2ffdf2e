"""`python -m dstack.cli`, the same as `dstack`."""

from dstack.cli.main import main

main()
