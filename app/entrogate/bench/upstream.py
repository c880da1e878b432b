"""The old name of `entrogate_lab.bench.upstream`: the same module, for scripts that import it."""

import runpy
import sys
from importlib import import_module

_MOVED = "entrogate_lab.bench.upstream"

if __name__ == "__main__":
    runpy.run_module(_MOVED, run_name="__main__", alter_sys=True)
else:
    sys.modules[__name__] = import_module(_MOVED)
