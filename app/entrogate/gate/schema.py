"""What a policy file may say. Reading one, with positions in the errors, is `gate.policy`."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from entrogate.types import Mode

SCHEMA_VERSION = 1


class Statistic(StrEnum):
    """The number that is compared with a tool's threshold."""

    ENTROPY_MAX = "entropy_max"
    ENTROPY_MEAN = "entropy_mean"
    ENTROPY_TAIL_MEAN = "entropy_tail_mean"
    ENTROPY_LAST_WINDOW = "entropy_last_window"
    MARGIN_MEAN = "margin_mean"
    MARGIN_MIN = "margin_min"
    P_TOOL_CALL = "p_tool_call"
    UNIFORM = "uniform"

    @property
    def is_entropy(self) -> bool:
        """Whether the number is an entropy in nats, so an interval that may be open above."""
        return self.value.startswith("entropy_")

    @property
    def certain_when_above(self) -> bool:
        """A wide margin means a certain model; of all others a low value does."""
        return self.value.startswith("margin_")


class OnRepeat(StrEnum):
    """What becomes of a call that is identical to an earlier one."""

    REPLAY = "replay"
    SUPPRESS = "suppress"
    ALLOW = "allow"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Signal(_Part):
    """Which statistic of the segment decides, and from how many tokens on."""

    statistic: Annotated[Statistic, Field(strict=False)] = Statistic.ENTROPY_MAX
    bound: Literal["lower", "upper", "midpoint"] = "upper"
    min_tokens: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _bound_needs_entropy(self) -> Signal:
        if "bound" in self.model_fields_set and not self.statistic.is_entropy:
            raise PydanticCustomError(
                "bound",
                "'bound' chooses between the bounds of an entropy; {statistic} has none: remove it",
                {"statistic": self.statistic.value, "at": "bound"},
            )
        return self


class ToolRule(_Part):
    """The rules of one tool; after loading, `Policy.rule` has filled in the defaults."""

    threshold: float | None = None
    on_repeat: Annotated[OnRepeat, Field(strict=False)] = OnRepeat.ALLOW
    max_calls: int | None = Field(default=None, ge=0)
    side_effects: bool = False

    @model_validator(mode="after")
    def _side_effects_are_never_gated(self) -> ToolRule:
        if not self.side_effects:
            return self
        for key in ("threshold", "on_repeat", "max_calls"):
            if key in self.model_fields_set and getattr(self, key) not in (None, OnRepeat.ALLOW):
                raise PydanticCustomError(
                    "side_effects",
                    "a tool with side effects is never gated: remove '{at}', or 'side_effects' if "
                    "calling the tool changes nothing",
                    {"at": key},
                )
        return self


class Defaults(_Part):
    """Rules for the tools named under `tools`, and only for these."""

    threshold: float | None = None
    on_repeat: Annotated[OnRepeat, Field(strict=False)] = OnRepeat.ALLOW
    max_calls: int | None = Field(default=None, ge=0)


class Budget(_Part):
    """Limits over a whole trajectory."""

    calls_per_trajectory: int | None = Field(default=None, ge=0)


class Explore(_Part):
    """Mode `explore`: with probability ``epsilon`` the alternative is applied."""

    epsilon: float = Field(default=0.1, ge=0.0, le=1.0)


class Force(_Part):
    """An answer is turned into a call of ``tool`` where the signal is above ``threshold``."""

    tool: str
    threshold: float


def _a_tool_name(name: str) -> str:
    if "*" in name or not name.strip():
        raise PydanticCustomError(
            "wildcard",
            "a tool is gated only where the policy names it: write each tool's own name instead of "
            "'{name}', since a wildcard would also gate tools with side effects",
            {"name": name},
        )
    return name


class Policy(_Part):
    """A gate policy. Equal content has an equal ``version``."""

    schema_version: Literal[1]
    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    mode: Annotated[Mode, Field(strict=False)] = Mode.OBSERVE
    signal: Signal = Signal()
    defaults: Defaults = Defaults()
    tools: dict[Annotated[str, AfterValidator(_a_tool_name)], ToolRule] = {}
    budget: Budget = Budget()
    explore: Explore = Explore()
    force: Force | None = None

    @field_validator("tools", mode="before")
    @classmethod
    def _a_bare_name_takes_the_defaults(cls, tools: object) -> object:
        if not isinstance(tools, dict):
            return tools
        return {k: {} if v is None else v for k, v in tools.items()}  # pyright: ignore

    @field_validator("force", mode="after")
    @classmethod
    def _force_needs_a_backend(
        cls, force: Force | None, info: ValidationInfo[dict[str, bool] | None]
    ) -> Force | None:
        if force is not None and not (info.context or {}).get("can_force"):
            raise PydanticCustomError(
                "force",
                "this backend cannot force a call: 'force' needs the gate inside the engine; "
                "remove it",
            )
        return force

    @cached_property
    def version(self) -> str:
        """16 hexadecimal digits of the hash of the content, mode and name included."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def rule(self, tool: str) -> ToolRule | None:
        """The rules for ``tool`` with the defaults filled in; None where it is not named."""
        return self._rules.get(tool)

    @cached_property
    def _rules(self) -> dict[str, ToolRule]:
        return {name: self._resolve(rule) for name, rule in self.tools.items()}

    def _resolve(self, rule: ToolRule) -> ToolRule:
        if rule.side_effects:
            return ToolRule(side_effects=True)
        values = self.defaults.model_dump(mode="json")
        own = rule.model_dump(mode="json", include=rule.model_fields_set)
        return ToolRule.model_validate(values | own)
