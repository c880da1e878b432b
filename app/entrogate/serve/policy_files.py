"""The policy files that the settings name, as they are at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from entrogate.errors import ConfigError
from entrogate.gate.arms import Given
from entrogate.gate.policy import parse_policy, read_policy_text
from entrogate.settings import GateSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look at the files found; two equal looks found the same."""

    texts: tuple[tuple[str, str], ...] = ()  # what errors call each file, and its text
    problem: str = ""  # why one of them cannot be read


class PolicyFiles:
    """Reads them. ``can_force``: the backend can turn an answer into a call.

    ``first`` is what they say when it is made: ConfigError where that cannot be used.
    """

    def __init__(self, settings: GateSettings, *, can_force: bool) -> None:
        named = (settings.policy, settings.trial_policy)
        self.named = tuple(each for each in named if each is not None)
        self.can_force = can_force
        self._share = settings.trial_share
        look = self.look()
        self.first = look, self.given(look)

    def look(self) -> Look:
        """Read the files; a file that cannot be read is said, not raised. Blocks.

        The content alone says whether a file has changed: two writes within one tick of the file
        system's clock leave the same time behind, and a mounted ConfigMap changes by a link.
        """
        try:
            return Look(texts=tuple(read_policy_text(name) for name in self.named))
        except ConfigError as error:
            return Look(problem=str(error))

    def given(self, look: Look) -> Given:
        """The policies in the files. Raises ConfigError with file, line and column."""
        if look.problem:
            raise ConfigError(look.problem)
        policies = [
            parse_policy(text, label, can_force=self.can_force) for label, text in look.texts
        ]
        trial = policies[1] if len(policies) > 1 else None
        if trial is not None and trial.version == policies[0].version:
            (main, _), (other, _) = look.texts
            raise ConfigError(
                f"{other}: the policy on trial equals the main one, {main} (version"
                f" {trial.version}): a trial needs another policy"
            )
        return Given(main=policies[0], trial=trial, share=self._share)
