"""The errors of Entrogate, one class per boundary.

    EntrogateError
    ├── ConfigError          settings, policies, files named on the command line
    ├── RequestError         the client's request cannot be served (4xx)
    ├── UpstreamError        the model server failed
    │   ├── UpstreamUnavailable   cannot be reached, or refuses (502/503)
    │   ├── UpstreamRefused       understood, and said no with a reason (400)
    │   ├── UpstreamTimeout       did not answer in time (504)
    │   └── UpstreamProtocol      answered what we cannot read (502)
    ├── StoreError           the store cannot be read or written
    │   └── UnknownRecord         nothing is stored under the given id (404)
    │       └── ErasedRecord          what was stored under it was erased (410)
    ├── ExportError          a dataset cannot be written or read
    └── GraderError          a user's grader gave no score

The pure core raises ``ValueError`` with what was wrong and what would be right. ``cli`` prints an
EntrogateError as one line and exits with 1; ``serve`` maps it to OpenAI's error envelope in
``wire.errors`` and nowhere else.
"""

from __future__ import annotations

import json


class EntrogateError(Exception):
    """Base of all errors that a user may see; the message is meant for them."""


class ConfigError(EntrogateError):
    """Settings, a policy or a file named on the command line is unusable."""


class RequestError(EntrogateError):
    """The client's request cannot be served as it is."""

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class UpstreamError(EntrogateError):
    """The model server failed."""


class UpstreamUnavailable(UpstreamError):
    """The model server cannot be reached or refuses connections."""


class UpstreamRefused(UpstreamError):
    """The model server understood what it was asked to do and refused; the message says why."""


class UpstreamTimeout(UpstreamError):
    """The model server did not answer in time."""


class UpstreamProtocol(UpstreamError):
    """The model server answered something that is not what its API promises."""


def no_chunk(error: Exception) -> UpstreamProtocol:
    """The error for an event that cannot be read as what the API promises; ``error`` says why."""
    # The words of JSON's parsers differ between their versions.
    is_json = isinstance(error, json.JSONDecodeError)
    why = f"malformed JSON at character {error.pos}" if is_json else str(error)
    return UpstreamProtocol(f"the upstream sent an event that is no chunk: {why}")


class StoreError(EntrogateError):
    """The store cannot be read or written."""


class UnknownRecord(StoreError):
    """Nothing is stored under the given id."""


class ErasedRecord(UnknownRecord):
    """What was stored under the given id was erased."""


class ExportError(EntrogateError):
    """A dataset cannot be written or read."""


class GraderError(EntrogateError):
    """A user's grader gave no score; ``kind`` is a label for metrics."""

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind
