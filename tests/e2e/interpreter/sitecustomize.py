"""On PYTHONPATH of a vLLM: lets model runner V2 run without a GPU, as it runs on one.

vLLM wants a CPU backend of Triton before it takes V2 there. What Triton's interpreter runs is never
compiled, so a backend that only says it is there will do. And vLLM switches asynchronous scheduling
off on a CPU, which is V2's default elsewhere: it is switched on again.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any


class Driver:
    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_device(self) -> int:
        return 0


class CpuPlatform(MetaPathFinder):
    """Changes vLLM's class of that name when it is imported."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != "vllm.platforms.cpu":
            return None
        sys.meta_path.remove(self)
        spec: Any = find_spec(fullname)
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            platform: Any = module.CpuPlatform
            check = platform.check_and_update_config.__func__

            def check_and_update_config(cls: Any, config: Any) -> None:
                check(cls, config)
                config.scheduler_config.async_scheduling = True

            platform.check_and_update_config = classmethod(check_and_update_config)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.backends import backends

    known: dict[str, Any] = backends
    known["cpu"] = SimpleNamespace(compiler=None, driver=Driver)
    sys.meta_path.insert(0, CpuPlatform())
