"""`python -m vap` is `vap`."""

from vap.cli import main

main()
