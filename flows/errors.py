"""Every failure this project raises, as one tree.

::

    AutomationError(what, why, remedy)
    ├── Temporary(retry_after)        trying again later may succeed
    │   ├── Unreachable               no answer: the other side's state is unknown
    │   ├── AmbiguousEffect           a write whose answer was lost: look before you act again
    │   ├── Busy                      locked, overloaded or in use by somebody else
    │   ├── RateLimited               asked to slow down
    │   ├── DeadlineExceeded          we stopped waiting; the effect may still arrive
    │   └── Unproven                  a fact could not be established; unknown is never "no"
    └── Permanent                     trying again changes nothing
        ├── BadInput(field, value)    the caller must send something else
        ├── BadAnswer                 a peer answered with something that we do not trust
        ├── Unauthorized              our credential was refused
        ├── Forbidden                 our credential lacks a right
        ├── NotFound                  proven absent, not merely unanswered
        ├── Conflict(kind, facts)     the state of things forbids it
        │   └── Fenced                somebody newer owns this: stop at once
        ├── TaskFailed                the peer carried it out and reported failure
        └── MisconfiguredSetting      a ZLH_* setting is wrong, missing or unknown

Each says *what* failed, *why*, and *what to do*. Vendor errors are translated into
these inside ``flows.clients`` and ``flows.state``; nothing above ever sees a vendor's own.
"""

from __future__ import annotations

from collections.abc import Mapping


class AutomationError(Exception):
    """Base of all. ``what`` names the action and object, ``why`` the cause, ``remedy`` the next step of a person."""

    def __init__(self, what: str, *, why: str = "", remedy: str = "") -> None:
        self.what, self.why, self.remedy = what, why, remedy
        super().__init__(what, why, remedy)

    def __str__(self) -> str:
        return " · ".join(part for part in (self.what, self.why, self.remedy) if part)


class Temporary(AutomationError):
    """Trying again may succeed; ``retry_after`` is in seconds, None where nobody said."""

    def __init__(self, what: str, *, why: str = "", remedy: str = "", retry_after: float | None = None) -> None:
        super().__init__(what, why=why, remedy=remedy)
        self.retry_after = retry_after


class Unreachable(Temporary):
    """No connection or no answer to a request that had no effect, or whose effect is idempotent."""


class AmbiguousEffect(Temporary):
    """A write was sent and no answer came: it may or may not have happened."""


class Busy(Temporary):
    """Locked, overloaded or in use."""


class RateLimited(Temporary):
    """The peer asked us to slow down."""


class DeadlineExceeded(Temporary):
    """A deadline of ours passed while something was still under way."""


class Unproven(Temporary):
    """A question got no trustworthy answer. Never treat it as a no."""


class Permanent(AutomationError):
    """Trying again changes nothing."""


class BadInput(Permanent):
    """``field`` names the input, ``value`` what was given (never a secret)."""

    def __init__(self, field: str, value: object, *, why: str, remedy: str = "") -> None:
        super().__init__(f"{field}: {value!r} is not valid", why=why, remedy=remedy)
        self.field, self.value = field, value


class BadAnswer(Permanent):
    """A peer's answer was malformed, oversized or from somebody else than we asked."""


class Unauthorized(Permanent):
    """A peer refused our credential."""


class Forbidden(Permanent):
    """Our credential lacks a right."""


class NotFound(Permanent):
    """The object is proven not to exist."""


class Conflict(Permanent):
    """The present state forbids the request. ``kind`` names which rule, for programs (``no_capacity``, ``name_taken``);
    ``facts`` are what its reader needs to decide what to do (limits, the id of what is in the way)."""

    def __init__(self, what: str, *, why: str = "", remedy: str = "", kind: str = "", facts: Mapping[str, object] | None = None) -> None:
        super().__init__(what, why=why, remedy=remedy)
        self.kind = kind
        self.facts: Mapping[str, object] = dict(facts or {})


class Fenced(Conflict):
    """A newer holder exists (epoch, lease token or generation): nothing more may be done or written."""


class TaskFailed(Permanent):
    """A peer's task ended in failure; ``why`` carries the tail of its log."""


class MisconfiguredSetting(Permanent):
    """``what`` names the ZLH_* variable."""
