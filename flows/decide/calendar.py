"""When the operator is at the other job, and when they sleep. Pure: a time in, an answer out.

Used by :mod:`flows.decide.routing`; built from settings by ``bootstrap``. Local times follow the IANA zone
through daylight-saving changes: 07:00 is 07:00 on the wall.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from flows.errors import BadInput

DAY_MIN = 24 * 60


@dataclass(frozen=True)
class Calendar:
    """Fields as the settings give them: an IANA zone, days (Monday is 0), and local times of day as HH:MM, end exclusive.

    A span that ends before it begins runs over midnight and belongs to the day on which it began; an empty one never holds.
    Raises BadInput naming the field.
    """

    timezone: str = "UTC"
    business_days: tuple[int, ...] = (0, 1, 2, 3, 4)
    business_from: str = "09:00"
    business_to: str = "17:00"
    quiet_from: str = "23:00"
    quiet_to: str = "07:00"
    zone: ZoneInfo = field(init=False, repr=False, compare=False)
    _business: tuple[int, int] = field(init=False, repr=False, compare=False)
    _quiet: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            zone = ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:
            raise BadInput("timezone", self.timezone, why="is no IANA time zone", remedy="for example Europe/Berlin") from error
        for day in self.business_days:
            if not 0 <= day <= 6:
                raise BadInput("business_days", day, why="is no weekday", remedy="0 (Monday) to 6 (Sunday)")
        # Frozen for everybody else: what is derived from the fields is computed once.
        object.__setattr__(self, "zone", zone)
        object.__setattr__(self, "_business", (_minutes("business_from", self.business_from), _minutes("business_to", self.business_to)))
        object.__setattr__(self, "_quiet", (_minutes("quiet_from", self.quiet_from), _minutes("quiet_to", self.quiet_to)))

    def is_business(self, at_ms: int) -> bool:
        """Whether the operator is at the other job: not free to act."""
        local = self._local(at_ms)
        began = _began(self._business, local.hour * 60 + local.minute)
        return began is not None and (local.weekday() - began) % 7 in self.business_days

    def is_quiet(self, at_ms: int) -> bool:
        """Whether the operator sleeps."""
        local = self._local(at_ms)
        return _began(self._quiet, local.hour * 60 + local.minute) is not None

    def quiet_ends(self, at_ms: int) -> int | None:
        """When the quiet hours around ``at_ms`` end, in milliseconds; None outside of them."""
        if not self.is_quiet(at_ms):
            return None
        local = self._local(at_ms)
        end = self._quiet[1]
        day = local.date() if local.hour * 60 + local.minute < end else local.date() + timedelta(days=1)
        # An hour that the wall shows twice has two such moments, one that it skips a later one: the first that lies ahead.
        wall = datetime(day.year, day.month, day.day, end // 60 % 24, end % 60, tzinfo=self.zone)
        moments = sorted(int(wall.replace(fold=fold).timestamp() * 1000) for fold in (0, 1))
        return next((moment for moment in moments if moment > at_ms), moments[-1])

    def day(self, at_ms: int) -> str:
        """The local date, as YYYY-MM-DD."""
        return self._local(at_ms).date().isoformat()

    def _local(self, at_ms: int) -> datetime:
        return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(self.zone)


def _began(span: tuple[int, int], minute: int) -> int | None:
    """0: the span began today, 1: yesterday, None: ``minute`` is outside."""
    start, end = span
    if start <= end:
        return 0 if start <= minute < end else None
    if minute >= start:
        return 0
    return 1 if minute < end else None


def _minutes(field: str, text: str) -> int:
    hours, colon, minutes = text.partition(":")
    if not (
        colon and hours.isdecimal() and minutes.isdecimal() and len(minutes) == 2 and int(minutes) < 60 and int(hours) * 60 + int(minutes) <= DAY_MIN
    ):
        raise BadInput(field, text, why="is no time of day", remedy="HH:MM, 00:00 to 24:00")
    return int(hours) * 60 + int(minutes)
