"""What a training run is told; ``record.json`` beside a checkpoint holds it as it was."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from entrogate.label.credit import Baseline
from entrogate.label.worth import DenseName, RewardName

LossName = Literal["topr", "grpo", "cispo", "rwsft"]


class TrainSettings(BaseModel):
    """Settings of `entrogate train`; the defaults suit a LoRA on logged data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    data: tuple[str, ...] = Field(min_length=1)
    out: str
    loss: LossName = "topr"
    reward: RewardName = "dense"
    baseline: Baseline = "leave_one_out"
    dense: DenseName = "calibrated"
    alpha: float = Field(default=0.5, ge=0)
    min_reduction: float = Field(default=0.0, ge=0)
    no_calls: Literal["outcome", "zero", "null"] = "outcome"
    ratio: Literal["token", "sequence"] = "token"
    clip: float = Field(default=0.2, gt=0, lt=1)
    cap: float = Field(default=2.0, ge=1)
    ce_weight: float = Field(default=0.05, ge=0)
    kl_weight: float = Field(default=0.0, ge=0)
    lora_rank: int = Field(default=16, ge=0)  # 0: all weights
    adapter: str | None = None
    lora_alpha: int | None = Field(default=None, gt=0)  # None: twice the rank
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup_steps: int = Field(default=5, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    batch_tokens: int = Field(default=16_384, ge=1)
    pack_tokens: int = Field(default=4_096, ge=1)
    bf16: bool = False
    seed: int = 0
    save_every: int = Field(default=50, ge=1)
    stop_effective_share: float = Field(default=0.3, ge=0, le=1)
    stop_log_ratio: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _batch_holds_a_pack(self) -> TrainSettings:
        if self.batch_tokens < self.pack_tokens:
            raise ValueError(
                f"batch_tokens is {self.batch_tokens}, less than pack_tokens ({self.pack_tokens})"
            )
        if self.adapter is not None and not self.lora_rank:
            raise ValueError("adapter goes on with a LoRA; lora_rank 0 trains all weights")
        return self
