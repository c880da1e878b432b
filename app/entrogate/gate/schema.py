"""What a policy file may say. Reading one, with positions in the errors, is `gate.policy`."""

from __future__ import annotations

import difflib
import hashlib
import json
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, cast

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

from entrogate.gate.vector import FEATURES, TOOL_FEATURE
from entrogate.types import Estimator, Mode

SCHEMA_VERSION = 1
_DRAFT = "draft_"


def _later(default: Any, **bounds: Any) -> Any:
    """A field that the first schema did not have: not in the dump where it says nothing.

    So the version of a policy that does not use it stays what it was.
    """
    return Field(default=default, exclude_if=lambda value: value == default, **bounds)


class Statistic(StrEnum):
    """The number that is compared with a tool's threshold."""

    ENTROPY_MAX = "entropy_max"
    ENTROPY_MEAN = "entropy_mean"
    ENTROPY_TAIL_MEAN = "entropy_tail_mean"
    ENTROPY_LAST_WINDOW = "entropy_last_window"
    MARGIN_MEAN = "margin_mean"
    MARGIN_MIN = "margin_min"
    ENTROPY_SUM = "entropy_sum"
    LOGPROB_SUM = "logprob_sum"
    P_TOOL_CALL = "p_tool_call"
    DRAFT_ENTROPY_MAX = "draft_entropy_max"
    DRAFT_ENTROPY_MEAN = "draft_entropy_mean"
    DRAFT_ENTROPY_TAIL_MEAN = "draft_entropy_tail_mean"
    DRAFT_ENTROPY_LAST_WINDOW = "draft_entropy_last_window"
    DRAFT_ENTROPY_SUM = "draft_entropy_sum"
    DRAFT_MARGIN_MEAN = "draft_margin_mean"
    DRAFT_MARGIN_MIN = "draft_margin_min"
    DRAFT_LOGPROB_SUM = "draft_logprob_sum"
    LEARNED = "learned"
    UNIFORM = "uniform"

    @property
    def is_draft(self) -> bool:
        """Whether it is measured on the draft: the beginning of the answer without the call."""
        return self.value.startswith(_DRAFT)

    @property
    def base(self) -> str:
        """The statistic itself, whatever it is measured on: ``entropy_max``, ``margin_mean``, …"""
        return self.value.removeprefix(_DRAFT)

    @property
    def is_entropy(self) -> bool:
        """Whether the number is an entropy in nats, so an interval that may be open above."""
        return self.base.startswith("entropy_")

    @property
    def certain_when_above(self) -> bool:
        """A wide margin, a likely text and a high learned probability mean a certain model.

        Of all others a low value does.
        """
        return self.base.startswith(("margin_", "logprob_")) or self.value == "learned"


class OnRepeat(StrEnum):
    """What becomes of a call that is identical to an earlier one."""

    REPLAY = "replay"
    SUPPRESS = "suppress"
    ALLOW = "allow"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class LearnedModel(_Part):
    """A logistic model of "the answer without the call is right" (`gate.vector.learned_value`).

    ``weights`` are per unit of each feature; ``missing`` is what stands for an unknown one.
    """

    intercept: float
    weights: dict[str, float] = Field(min_length=1, max_length=256)
    missing: dict[str, float] = {}

    @field_validator("weights", "missing", mode="after")
    @classmethod
    def _features_are_known(cls, values: dict[str, float]) -> dict[str, float]:
        for name in values:
            if name not in FEATURES and not name.startswith(TOOL_FEATURE):
                near = difflib.get_close_matches(name, FEATURES, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise PydanticCustomError(
                    "feature", "no feature '{name}'{hint}", {"name": name, "hint": hint}
                )
        return values


class Signal(_Part):
    """Which statistic decides, and from how many tokens on.

    ``draft_tokens``: how long a draft is. A statistic of the draft and the learned one need no
    segment, so ``min_tokens`` is 1 for them where it is not given.
    """

    statistic: Annotated[Statistic, Field(strict=False)] = Statistic.ENTROPY_MAX
    bound: Literal["lower", "upper", "midpoint"] = "upper"
    min_tokens: int = Field(default=4, ge=1)
    draft_tokens: int = _later(8, ge=1, le=64)
    model: LearnedModel | None = _later(None)

    @model_validator(mode="before")
    @classmethod
    def _drafts_may_be_short(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        given = cast("dict[str, Any]", values)
        if "min_tokens" in given:
            return given
        statistic = given.get("statistic")
        short = isinstance(statistic, str) and (
            statistic.startswith(_DRAFT) or statistic == "learned"
        )
        return {**given, "min_tokens": 1} if short else given

    @model_validator(mode="after")
    def _a_model_is_for_the_learned_statistic(self) -> Signal:
        if (self.model is None) is (self.statistic is Statistic.LEARNED):
            message = (
                "'model' belongs to the statistic 'learned': remove it"
                if self.model is not None
                else "the statistic 'learned' needs a 'model': `entrogate calibrate` writes one"
            )
            at = "model" if self.model is not None else "statistic"
            raise PydanticCustomError("model", "{message}", {"message": message, "at": at})
        return self

    @property
    def needs_draft(self) -> bool:
        """Must the answer without the call be begun before this can decide?"""
        if self.statistic.is_draft:
            return True
        names = self.model.weights if self.model is not None else ()
        return any(name.startswith(_DRAFT) for name in names)

    @model_validator(mode="after")
    def _bound_needs_entropy(self) -> Signal:
        if "bound" in self.model_fields_set and not self.statistic.is_entropy:
            raise PydanticCustomError(
                "bound",
                "'bound' chooses between the bounds of an entropy; {statistic} has none: remove it",
                {"statistic": self.statistic.value, "at": "bound"},
            )
        return self


class Normalise(_Part):
    """What makes two calls of a tool the same although their arguments are not identical.

    ``case``: upper and lower case; ``spaces``: white space around and between words; ``numbers``:
    1, 1.0 and "1"; ``ignore``: keys that do not count, ``options.page`` for one inside an object.
    The order of keys never counts.
    """

    case: bool = False
    spaces: bool = False
    numbers: bool = False
    ignore: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), max_length=64, strict=False
    )

    @property
    def changes(self) -> bool:
        """Whether calls can be the same that are not identical."""
        return self.case or self.spaces or self.numbers or bool(self.ignore)


_GATING = ("threshold", "on_repeat", "max_calls", "signal", "replay_for_seconds", "invalidated_by")


def _a_single_tool(name: str) -> str:
    if "*" in name or not name.strip():
        raise PydanticCustomError(
            "tool", "'{name}' names no tool: write out each tool's own name", {"name": name}
        )
    return name


_ToolNames = tuple[Annotated[str, AfterValidator(_a_single_tool)], ...]


class ToolRule(_Part):
    """The rules of one tool; after loading, `Policy.rule` has filled in the defaults."""

    threshold: float | None = None
    on_repeat: Annotated[OnRepeat, Field(strict=False)] = OnRepeat.ALLOW
    max_calls: int | None = Field(default=None, ge=0)
    side_effects: bool = False
    signal: Signal | None = _later(None)
    normalise: Normalise = _later(Normalise())
    replay_for_seconds: float | None = _later(None, gt=0)
    invalidated_by: _ToolNames = _later((), max_length=64, strict=False)
    polling: bool = _later(default=False)

    @model_validator(mode="after")
    def _side_effects_are_never_gated(self) -> ToolRule:
        if not self.side_effects:
            return self
        for key in _GATING:
            if getattr(self, key) != type(self).model_fields[key].default:
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
    normalise: Normalise = _later(Normalise())
    replay_for_seconds: float | None = _later(None, gt=0)
    invalidated_by: _ToolNames = _later((), max_length=64, strict=False)


class Budget(_Part):
    """Limits over a whole trajectory."""

    calls_per_trajectory: int | None = Field(default=None, ge=0)


class Explore(_Part):
    """Mode `explore`: with probability ``epsilon`` the alternative is applied."""

    epsilon: float = Field(default=0.1, ge=0.0, le=1.0)


class Circle(_Part):
    """A call that would complete so many rounds of the same calls and results is suppressed."""

    rounds: int = Field(default=3, ge=2, le=100)


class Audit(_Part):
    """Of the turns that mode `enforce` would suppress, a ``share`` is let through at random.

    What they show bounds the share of suppressed calls that were needed. Where it is above
    ``max_loss`` with confidence 1 - ``delta``, the fuse of that tool blows (`serve.fuses`);
    ``pooled``: the audits of all tools count together, and blow all fuses.
    """

    share: float = Field(default=0.05, gt=0.0, lt=1.0)
    max_loss: float = Field(default=0.05, gt=0.0, lt=1.0)
    delta: float = Field(default=0.1, gt=0.0, lt=1.0)
    pooled: bool = _later(default=False)


class Calibration(_Part):
    """How `entrogate calibrate` chose the thresholds, and for what they are valid.

    ``max_loss`` and ``delta`` are the promise: a trajectory is right as observed and wrong without
    the suppressed call in at most ``max_loss`` of all cases, with confidence 1 - ``delta``.
    ``hash`` is over the rules that were certified and this block: it shows an edit by hand.
    """

    model: str
    weights: str
    tokenizer: str | None = None  # hash of the tokenizer, where it is known
    # How its entropies were measured; None: certified before this was recorded.
    estimator: Annotated[Estimator | None, Field(strict=False)] = _later(None)
    n: int = Field(ge=1)  # trajectories that certified
    max_loss: float = Field(gt=0.0, lt=1.0)
    delta: float = Field(gt=0.0, lt=1.0)
    tools: tuple[str, ...] = Field(default=(), strict=False)  # certified; empty: all, pooled
    date: str
    data: str  # hash of the trajectories
    hash: str


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
    circle: Circle | None = _later(None)
    audit: Audit | None = _later(None)
    calibration: Calibration | None = _later(None)

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
        content = json.dumps(self.hashed_content(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def hashed_content(self) -> dict[str, Any]:
        """All that the policy says, as JSON; equal for two policies only if they decide alike.

        A plain dump does not tell a tool that takes a default from one with ``threshold: null``.
        """
        usual, own = ToolRule(), dict[str, list[str]]()
        for name, rule in self.tools.items():
            for field in sorted(rule.model_fields_set & set(Defaults.model_fields)):
                if getattr(rule, field) == getattr(usual, field) != getattr(self.defaults, field):
                    own.setdefault(name, []).append(field)
        return self.model_dump(mode="json") | ({"overridden": own} if own else {})

    def rule(self, tool: str) -> ToolRule | None:
        """The rules for ``tool`` with the defaults filled in; None where it is not named."""
        return self._rules.get(tool)

    def signal_for(self, tool: str) -> Signal:
        """What decides about calls of ``tool``: its own signal or the policy's."""
        rule = self.rule(tool)
        return self.signal if rule is None or rule.signal is None else rule.signal

    @cached_property
    def _rules(self) -> dict[str, ToolRule]:
        return {name: self._resolve(rule) for name, rule in self.tools.items()}

    def _resolve(self, rule: ToolRule) -> ToolRule:
        if rule.side_effects:
            # How its calls are compared still counts where other calls go in a circle with it.
            return ToolRule(side_effects=True, normalise=rule.normalise, polling=rule.polling)
        values = {name: getattr(self.defaults, name) for name in Defaults.model_fields}
        own = {name: getattr(rule, name) for name in rule.model_fields_set}
        if rule.polling:  # it asks the same again on purpose, unless it says otherwise itself
            values["on_repeat"] = OnRepeat.ALLOW
        return ToolRule.model_validate(values | own)
