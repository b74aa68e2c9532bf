"""``python -m sinkscope``: the same as the console script."""

from sinkscope.cli.main import main

main()
