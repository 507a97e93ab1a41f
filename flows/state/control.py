"""Single values that steer everything: the generation, the repair level, whether orders are taken. Read by runs and sweeps."""

from __future__ import annotations

import hashlib

from sqlalchemy import bindparam, case, select, update

from flows.errors import BadInput, NotFound
from flows.state import audit
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.unique import insert_unique

GENERATION, REPAIR_LEVEL, INTAKE_CLOSED = "generation", "repair_level", "intake_closed"
_VALUE = select(t.control.c.value).where(t.control.c.name == bindparam("of"))
_GENERATION = select(t.control.c.value).where(t.control.c.name == GENERATION)
_GENERATION_LOCKED = _GENERATION.with_for_update(read=True)
#: The highest level of repairs that there is.
HIGHEST_LEVEL = 3


async def generation(tx: Tx, *, lock: bool = False) -> int:
    """Part of every engine key. ``lock``: it cannot be raised before the transaction ends. Raises NotFound in an unmigrated database."""
    value = (await tx.execute(_GENERATION_LOCKED if lock else _GENERATION)).scalar_one_or_none()
    if value is None:
        raise NotFound("generation", why="the database has no control rows", remedy="zlh up applies the migrations")
    return int(value)


async def raise_generation(tx: Tx, actor: str) -> int:
    """After a restore or a migration: every run of an older generation ends before any effect. Audited."""
    column = t.control.c.value
    raised = case((column + 1 > tx.now, column + 1), else_=tx.now)
    done = await tx.execute(update(t.control).where(t.control.c.name == GENERATION).values(value=raised, changed_at=tx.now, changed_by=actor[:64]))
    value = await generation(tx) if done.rowcount == 1 else await _first(tx, GENERATION, tx.now, actor)
    await audit.append(tx, actor, "generation.raised", "control:generation", detail={"to": value})
    return value


async def repair_level(tx: Tx) -> int:
    """The highest level of repairs that may be carried out; 1 where nobody said otherwise."""
    value = await _value(tx, REPAIR_LEVEL)
    return 1 if value is None else value


async def set_repair_level(tx: Tx, level: int, actor: str) -> None:
    """0 repairs nothing, 3 everything that was approved. Audited. Raises BadInput."""
    if not 0 <= level <= HIGHEST_LEVEL:
        raise BadInput("level", level, why=f"must be between 0 and {HIGHEST_LEVEL}")
    await _set(tx, REPAIR_LEVEL, level, actor)


async def intake_closed(tx: Tx) -> bool:
    """Whether new orders are refused, be it to all but one token."""
    return bool(await _value(tx, INTAKE_CLOSED))


async def set_intake_closed(tx: Tx, closed: bool, actor: str, *, but: str | None = None) -> None:
    """Audited. ``but``: id of the one token whose orders are taken all the same."""
    await _set(tx, INTAKE_CLOSED, pass_of(but) if closed and but is not None else int(closed), actor)


async def end_pass(tx: Tx, token_id: str, actor: str, *, closed: bool) -> bool:
    """Ends what ``but`` of :func:`set_intake_closed` began. False, and nothing is changed, where somebody closed or opened intake since. Audited."""
    row = t.control.c
    change = update(t.control).where(row.name == INTAKE_CLOSED, row.value == pass_of(token_id))
    done = await tx.execute(change.values(value=int(closed), changed_at=tx.now, changed_by=actor[:64]))
    if done.rowcount == 1:
        await audit.append(tx, actor, f"{INTAKE_CLOSED}.set", f"control:{INTAKE_CLOSED}", detail={"to": int(closed)})
    return bool(done.rowcount == 1)


def pass_of(token_id: str) -> int:
    """What ``intake_closed`` holds while orders of this one token are taken: 0 is open, 1 closed to everybody, and this neither. A fingerprint,
    since the column is a number; a caller has proven the token itself before its id is compared."""
    return (int.from_bytes(hashlib.sha256(token_id.encode()).digest()[:7]) << 1) + 2


async def _value(tx: Tx, name: str) -> int | None:
    value: int | None = (await tx.execute(_VALUE, {"of": name})).scalar_one_or_none()
    return value


async def _set(tx: Tx, name: str, value: int, actor: str) -> None:
    change = update(t.control).where(t.control.c.name == name).values(value=value, changed_at=tx.now, changed_by=actor[:64])
    if (await tx.execute(change)).rowcount != 1 and await _first(tx, name, value, actor) != value:
        await tx.execute(change)
    await audit.append(tx, actor, f"{name}.set", f"control:{name}", detail={"to": value})


async def _first(tx: Tx, name: str, value: int, actor: str) -> int:
    """Writes the row that is missing; returns the value that it has then (somebody else may have been faster)."""
    if await insert_unique(tx, t.control, {"name": name, "value": value, "changed_at": tx.now, "changed_by": actor[:64]}):
        return value
    return int(await _value(tx, name) or 0)
