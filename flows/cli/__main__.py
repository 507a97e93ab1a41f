"""``python -m flows.cli``: the same as ``zlh``, for children that must run in this very environment."""

from flows.cli.main import main

main()
