"""How questions and reasoning are put into words.

Reasoning has several equally likely wordings for the same thought, as in any language: where they
fork, a token has moderate entropy (ln 2 to ln 4 nats) and hardly any margin, known fact or not.
"""

import random
from collections.abc import Sequence

OPENINGS = ("", "I think ", "As I recall, ", "I believe ")
OPENINGS_AFTER_RESULT = ("", "So then ", "It says ", "I see that ")
LINKS = (". ", "; then ", ", and ")

_VERBS: dict[str, tuple[str, ...]] = {
    "city": ("lives in", "dwells in", "stays in"),
    "guild": ("serves the guild", "is of the guild", "works for the guild"),
    "ship": ("sails the ship", "owns the ship", "keeps the ship"),
    "mentor": ("learned from", "was taught by", "is a pupil of"),
    "partner": ("trades with", "works with", "deals with"),
    "founder": ("was founded by", "was built by", "was begun by"),
    "river": ("stands on the", "lies on the", "overlooks the"),
}
_SUM_VERBS = ("is", "gives", "makes")
_QUESTIONS: dict[str, tuple[str, ...]] = {
    "city": ("In which city does {} live?", "Where does {} live?"),
    "guild": ("Which guild does {} serve?", "What is the guild of {}?"),
    "ship": ("Which ship does {} sail?", "What is the ship of {}?"),
    "mentor": ("Who taught {}?", "Who is the mentor of {}?"),
    "partner": ("Who trades with {}?", "Who is the partner of {}?"),
    "founder": ("Who founded {}?", "Who was the founder of {}?"),
    "river": ("On which river is {}?", "Which river is at {}?"),
}
_STORIES: dict[str, str] = {
    "+": "{name} has {left} pears and buys {right} more. How many pears?",
    "-": "{name} has {left} pears and sells {right}. How many pears are left?",
    "*": "{name} fills {left} baskets with {right} pears each. How many pears?",
}


def statement(rng: random.Random, subject: str, attribute: str, value: str) -> str:
    """A belief in words, without a full stop. For sums, `attribute` is operator and operand."""
    if attribute in _VERBS:
        return f"{subject} {rng.choice(_VERBS[attribute])} {value}"
    return f"{subject} {attribute} {rng.choice(_SUM_VERBS)} {value}"


def reasoning(rng: random.Random, statements: Sequence[str], *, after_result: bool) -> str:
    """One reasoning segment."""
    openings = OPENINGS_AFTER_RESULT if after_result else OPENINGS
    first, *rest = statements
    text = rng.choice(openings) + first
    for later in rest:
        text += rng.choice(LINKS) + later
    return f"{text}."


def chain_question(rng: random.Random, subject: str, attributes: Sequence[str]) -> str:
    """A question on the last attribute, reached through the relations before it."""
    for relation in attributes[:-1]:
        subject = f"the {relation} of {subject}"
    return rng.choice(_QUESTIONS[attributes[-1]]).format(subject)


def short_question(subject: str, attribute: str) -> str:
    """A question on one fact as a key: "City of Ana Bel?", "7 + 5?"."""
    if attribute in _VERBS:
        return f"{attribute.capitalize()} of {subject}?"
    return f"{subject} {attribute}?"


def sum_question(rng: random.Random, left: str, steps: Sequence[str], name: str) -> str:
    """A question on one or two operations; a step is operator and operand, as in "+ 12"."""
    operator, right = steps[0].split()
    if len(steps) == 1:
        if rng.random() < 0.5:
            return f"What is {left} {steps[0]}?"
        return _STORIES[operator].format(name=name, left=left, right=right)
    return f"Take {left} {steps[0]}, then {steps[1]}. What is it?"
