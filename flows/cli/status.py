"""The screen of ``zlh status``: facts from one reading transaction, and their lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Integer, func, select

from flows.cli import output
from flows.state import brakes, control, outbox, sources, sweeps
from flows.state import tables as t
from flows.state.database import Tx

#: Findings on the screen; the rest is counted.
SHOWN = 12
#: Why a finding is not being repaired, in words.
REASONS = {
    "level_disabled": "not repaired: its level is off",
    "breaker_open": "not repaired: the breaker is open",
    "locked": "waits: somebody else holds it",
    "operation_running": "waits for the operation under way",
    "unconfirmed": "seen once, confirmed by the next sweep",
    "correlated": "part of a larger incident",
    "rate_limited": "waits its turn",
    "awaiting_review": "only with an approval: zlh reviews",
    "paused": "not repaired: automation is paused",
    "no_repair": "needs a person",
    "repairing": "being repaired",
}
SOURCES = ("database", "proxmox", "proxy", "dns", "engine")


async def facts(tx: Tx) -> dict[str, Any]:
    """Everything that the screen shows, as data. Times in ms."""
    s, o, e, b = t.servers.c, t.operations.c, t.episodes.c, t.observations.c
    last, level = await sweeps.last_finished(tx), await control.repair_level(tx)
    known, _ = await sources.all_(tx)
    states = {r.state: r.n for r in await tx.execute(select(s.state, func.count().label("n")).group_by(s.state))}
    reachable = (
        await tx.execute(
            select(func.count().label("all"), func.sum(b.reachable.cast(Integer)).label("up"))
            .join(t.servers, s.id == b.server_id)
            .where(s.state == "active")
        )
    ).one()
    live = await tx.execute(
        select(s.name, o.id, o.kind, o.step, o.queue, o.attempt, o.progress_at).join(t.servers, s.id == o.server_id).where(o.live_server.is_not(None))
    )
    findings = await tx.execute(
        select(e.id, e["check"], e.subject, e.summary, e.reason, e.remedy, e.opened_at, s.name.label("server"))
        .outerjoin(t.servers, s.id == e.server_id)
        .where(e.closed_at.is_(None))
        .order_by(e.opened_at)
    )
    reviews = (
        await tx.execute(select(func.count()).select_from(t.reviews).where(t.reviews.c.decision.is_(None), t.reviews.c.expires_at > tx.now))
    ).scalar_one()
    verified = (
        await tx.execute(select(func.count(t.backups.c.server_id.distinct())).where(t.backups.c.verified_at > tx.now - 86_400_000))
    ).scalar_one()
    stats = await outbox.stats(tx)
    paused = await brakes.active(tx)
    named = {r.id: r.name for r in await tx.execute(select(s.id, s.name).where(s.id.in_([p.target for p in paused])))}
    return {
        "now": tx.now,
        "level": level,
        "intake_closed": await control.intake_closed(tx),
        "paused": [
            {
                "scope": p.scope.value,
                "target": p.target,
                "name": named.get(p.target, p.target),
                "reason": p.reason,
                "until": p.until,
                "by": p.actor,
            }
            for p in paused
        ],
        "sweep": None if last is None else {"epoch": last.epoch, "finished_at": last.finished_at, "outcome": last.outcome, **last.summary},
        "sources": {n: None if n not in known else {"known": known[n].misses == 0, "reason": known[n].reason} for n in SOURCES},
        "agents": {"reachable": int(reachable.up or 0), "probed": int(reachable.all)},
        "servers": {k: v for k, v in states.items() if k != "deleted"},
        "operations": [dict(r._mapping) for r in live],
        "findings": [dict(r._mapping) for r in findings],
        "reviews": int(reviews),
        "backups": {"fresh": int(verified)},
        "outbox": {"waiting": stats.waiting, "dead": stats.dead, "last_sent_at": stats.delivered_at},
    }


def verdict(f: dict[str, Any], patience_ms: int) -> int:
    """The exit status: 1 with findings; 3 when nobody knows, since no sweep finished lately or a source gave no answer."""
    if f["findings"]:
        return 1
    return 3 if stale(f, patience_ms) or any(v is None or not v["known"] for v in f["sources"].values()) else 0


def stale(f: dict[str, Any], patience_ms: int) -> bool:
    """Whether no sweep finished lately, so that the rest of the screen is old."""
    return f["sweep"] is None or f["now"] - f["sweep"]["finished_at"] > patience_ms


def lines(f: dict[str, Any], *, utc: bool = False, patience_ms: int = 180_000) -> Iterator[str]:
    """The screen."""
    now = f["now"]
    paused = ", ".join(
        f"{p['scope']} {p['name']}".strip() + f" ({p['reason']}{', until ' + output.moment(p['until'], utc) if p['until'] else ''})"
        for p in f["paused"]
    )
    sweep = f["sweep"]
    when = (
        f"last sweep {output.duration(now - sweep['finished_at'])} ago in {sweep.get('seconds', 0):.1f} s (epoch {sweep['epoch']})"
        if sweep
        else "no sweep has finished yet"
    )
    yield f"automation {'PAUSED: ' + paused if paused else 'on'} · levels 0–{f['level']} · {when}"
    if f["intake_closed"]:
        yield "           ✗ no orders are taken → zlh intake"
    if stale(f, patience_ms):
        yield "           ✗ nothing is watched now: what follows is old → zlh doctor"
    marks = [f"{n} {'?' if v is None else '✓' if v['known'] else '✗ ' + v['reason'][:60]}" for n, v in f["sources"].items()]
    agents = f"agents {f['agents']['reachable']}/{f['agents']['probed']}"
    yield "sources    " + "  ".join([*marks[:2], agents, *marks[2:]])
    total = sum(f["servers"].values())
    busy = [f"{o['name']}: {o['kind']} {o['step'] or 'queued'}, {output.duration(now - o['progress_at'])}" for o in f["operations"][:4]]
    yield f"fleet      {total} servers" + "".join(f" · {n} {k}" for k, n in sorted(f["servers"].items())) + (f" ({'; '.join(busy)})" if busy else "")
    yield f"findings   {len(f['findings'])} open"
    for e in f["findings"][:SHOWN]:
        since = output.moment(e["opened_at"], utc)
        yield f"           {e['server'] or e['subject']}  {e['check']} since {since}  {REASONS.get(e['reason'], e['reason'])}" + (
            f" → {e['remedy']}" if e["remedy"] else ""
        )
    if len(f["findings"]) > SHOWN:
        yield f"           and {len(f['findings']) - SHOWN} more → zlh findings"
    yield f"people     {f['reviews']} reviews wait" + (" → zlh reviews" if f["reviews"] else "")
    queues = {q: sum(o["queue"] == q for o in f["operations"]) for q in ("provisioning", "operations", "repairs")}
    box = f["outbox"]
    dead = f", {box['dead']} dead" if box["dead"] else ""
    sent = f"last delivered {output.duration(now - box['last_sent_at'])} ago" if box["last_sent_at"] else "nothing delivered yet"
    yield "queues     " + " · ".join(f"{k} {v}" for k, v in queues.items()) + f" · outbox {box['waiting']}{dead} ({sent})"
    yield f"backups    {f['backups']['fresh']} servers with a verified one younger than a day · this version makes none by itself"
