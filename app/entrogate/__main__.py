"""``python -m entrogate``: the same as the ``entrogate`` command."""

from entrogate.cli import main

main()
