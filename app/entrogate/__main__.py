"""``python -m entrogate`` is the ``entrogate`` command."""

from __future__ import annotations

from entrogate.cli import main

if __name__ == "__main__":
    main()
