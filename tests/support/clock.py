"""A clock for tests that run many nights within a second."""

from __future__ import annotations

from datetime import datetime, timedelta


class Clock(datetime):
    """A clock that gives every run a second of its own, so that names do not wait for the real one."""

    present = datetime(2026, 11, 23)

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        cls.present += timedelta(seconds=1)
        return cls.present.replace(tzinfo=tz)  # type: ignore[arg-type]
