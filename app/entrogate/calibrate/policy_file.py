"""The policy file that a calibration writes: the rules, and a block that says what they promise."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import yaml

from entrogate.calibrate.result import Calibrated
from entrogate.calibrate.rules import with_fields
from entrogate.calibrate.samples import Log
from entrogate.errors import ConfigError
from entrogate.gate.calibrated import calibration_hash
from entrogate.gate.policy import parse_policy
from entrogate.gate.schema import Audit, Calibration, Policy

_MOST_LOSS = 0.5  # where fewer trajectories than ε have a skip, the promise alone allows any


def with_calibration(found: Calibrated, log: Log, date: str) -> Policy:
    """The certified policy with its block; ``date`` as YYYY-MM-DD.

    Raises ValueError where nothing was certified.
    """
    if found.policy is None or log.origin is None:
        raise ValueError("nothing was certified: there is no policy to write")
    tools = tuple(row.tool for row in found.rows if row.certified and row.tool is not None)
    block = Calibration(
        model=log.origin.model,
        weights=log.origin.weights,
        tokenizer=log.origin.tokenizer or None,
        estimator=log.origin.estimator,
        n=found.certified_on,
        max_loss=found.options.max_loss,
        delta=found.options.delta,
        tools=tools,
        date=date,
        data=log.data_hash,
        hash="",
    )
    signed = block.model_copy(update={"hash": calibration_hash(found.policy, block)})
    audit = audit_of(found)
    fields = {"calibration": signed} | ({} if audit is None else {"audit": audit})
    return with_fields(found.policy, **fields)


def audit_of(found: Calibrated) -> Audit | None:
    """The audit that watches over the promise; None where the policy suppressed nothing.

    The promise is P(loss) <= ε for any trajectory, an audit's ``max_loss`` is for those with a
    skip: ε / their share. It says nothing of single tools, so with one threshold for all of them
    their audits are pooled. The share of audited calls is that of the policy, if it had an audit.
    """
    whole = found.total
    if found.policy is None or whole is None or whole.skipped == 0:
        return None
    limit = found.options.max_loss * whole.n / whole.skipped
    values = {
        "share": (found.policy.audit or Audit()).share,
        "max_loss": min(_MOST_LOSS, round(limit, 4)),
        "delta": found.options.delta,
    }
    return Audit.model_validate(values | ({} if found.options.per_tool else {"pooled": True}))


def policy_yaml(policy: Policy, found: Calibrated) -> str:
    """The policy as YAML, with a comment that says what it promises.

    What is read from it again is the same policy: raises ValueError where it is not.
    """
    options = found.options
    content = policy.model_dump(mode="json", exclude_unset=True, exclude_none=False)
    whole = policy.model_dump(mode="json")
    content |= {name: whole[name] for name in ("audit", "calibration") if name in whole}
    head = (
        f"# Written by `entrogate calibrate` from {found.n} trajectories, of which"
        f" {found.certified_on} certified the thresholds.\n"
        f"# Promise: with confidence {1 - options.delta:.4g}, at most {options.max_loss:.4g} of\n"
        "# all trajectories are right with their calls and wrong without a suppressed one, as\n"
        "# long as they are like those of the log. `name`, `mode`, `explore` and `audit` may be\n"
        "# changed; any other change voids the promise, and the server reports it.\n"
    )
    text = head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if parse_policy(text, "written policy").version != policy.version:
        raise ValueError(
            "the written policy does not parse to the same policy: please report this bug"
        )
    return text


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it.

    Raises ConfigError where the folder cannot be written.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
