"""Drafts: the beginning of the answer without the call, decoded before the decision on it.

If the call is suppressed the draft is the beginning of the answer; if not, its tokens are the price
of the decision, and counted. After TARG (arXiv 2511.09803).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from entrogate.errors import UpstreamError
from entrogate.turn.choice import Choice
from entrogate.turn.without import Asked, Draft, decode_without
from entrogate.upstream.capabilities import Way
from entrogate.wire.spelled import spells_call

if TYPE_CHECKING:
    from entrogate.turn.session import Session
    from entrogate.turn.state import Turn


async def draft(session: Session, choice: Choice) -> Draft | None:
    """Decode the draft of ``choice`` for the decision on its calls; None where there can be none.

    A fault of the model server is counted, and the calls go through as they would without a draft.
    """
    turn = session.turn
    begin = _asked(session, choice)
    if begin is None:
        return None
    masks = begin.capabilities.way is Way.MASK
    length = turn.judge.draft_tokens(choice) if masks else None
    try:
        found = await decode_without(session.parts, begin, length)
    except UpstreamError as error:
        turn.guard.failed_open(f"no draft: {error}")
        return None
    if found is None:
        return None
    choice.tokens.drafted += len(found.tokens.ids)
    if spells_call(found.text, turn.request.tool_names):
        return None  # it is no answer, but the call again
    if found.ended and not found.text.strip():
        return None  # nor is nothing
    complete = found.tokens.gap is None
    return Draft(without=found, measured=found.capture() if complete else None)


def _asked(session: Session, choice: Choice) -> Asked | None:
    turn = session.turn
    position = choice.tokens.call_position()
    if turn.capabilities.way is Way.NO_TOOLS:
        if any(choice.content) or any(choice.reasoning):
            return None  # the client has it, and another answer cannot go on from there
        position = 0
    elif position is None or choice.tokens.gap is not None:
        return None
    return Asked(
        request=turn.leg.request,
        capabilities=turn.capabilities,
        prompt_token_ids=turn.leg.prompt_token_ids,
        kept_token_ids=choice.tokens.ids[:position],
        headers=session.headers,
    )


def rest_seed(turn: Turn, draft: Draft | None) -> int | None:
    """Another seed for the rest of an answer than its draft had; None where there was none."""
    seed = turn.leg.request.body.get("seed")
    return seed + 1 if draft is not None and isinstance(seed, int) and seed < 2**63 - 1 else None
