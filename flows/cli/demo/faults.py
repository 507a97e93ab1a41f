"""Acts on the living fleet: overlapping faults, each seen, then healed or explained."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from sqlalchemy import select

from flows.cli.demo.report import Row
from flows.cli.demo.stage import Stage
from flows.errors import AutomationError
from flows.state import tables as t


def now_ms() -> int:
    return int(time.time() * 1000)


async def dns_deleted(stage: Stage, name: str) -> Row:
    row = Row(f"DNS record of {name} deleted")
    began = now_ms()
    await stage.lab_call("POST", "/dns", {"op": "delete", "name": f"{name}.{stage.settings.dns.zone}", "rtype": "A"})
    repair = await stage.until("the record published again", lambda: _ended(stage, "publish_dns", began), 60)
    row.seen_s, row.healed_s = (repair.intent_at - began) / 1000, (repair.outcome_at - began) / 1000
    row.expect(repair.outcome == "repaired", f"the repair ended as {repair.outcome}")
    row.channels = await _told(stage, began, name, "alerts-repairs")
    row.expect("alerts-repairs" in row.channels, "no message in alerts-repairs")
    return row


async def proxy_restarted(stage: Stage, name: str) -> Row:
    """The proxy keeps nothing over a restart: it asks our control listener for every ready backend."""
    row = Row("proxy restarted, every registration lost")
    began = time.time()
    await stage.lab_call("POST", "/parts/bridge/restart")
    row.seen_s = time.time() - began

    async def back() -> bool:
        return name in await _registered(stage)

    await stage.until(f"{name} registered again", back, 60)
    row.healed_s = time.time() - began
    row.why = "the proxy rehydrated itself from the database"
    return row


async def unready_registered(stage: Stage, customer: str, name: str) -> Row:
    """A server is stopped through the API; then somebody registers it by hand."""
    row = Row(f"registration of {name}, which is not ready")
    server = await stage.server(name)
    answer = await stage.call(customer, "POST", f"/api/servers/{server.id}/stop")
    if answer.status_code != 202:
        raise AutomationError(f"stop of {name}", why=f"{answer.status_code}: {answer.text[:300]}")
    operation_id = answer.json()["operation"]["id"]

    async def stopped() -> bool:
        return (await stage.operation(operation_id)).finished_at is not None

    await stage.until(f"{name} stopped", stopped, 60)
    began = now_ms()
    await stage.lab_call("POST", "/bridge/register", {"name": name, "address": server.address, "port": 25565})
    repair = await stage.until("the registration withdrawn", lambda: _ended(stage, "deregister_proxy", began), 70)
    row.seen_s, row.healed_s = (repair.intent_at - began) / 1000, (repair.outcome_at - began) / 1000
    row.expect(name not in await _registered(stage), "it is still registered")
    row.channels = await _told(stage, began, name, "alerts-repairs")
    return row


async def agent_killed(stage: Stage, name: str) -> Row:
    """Level 2 is off at installation: it is seen, explained and escalated, not repaired."""
    row = Row(f"agent of {name} killed")
    server = await stage.server(name)
    began = now_ms()
    await stage.lab_call("POST", f"/agents/{server.vmid}/kill")
    episode = await stage.until("agent_offline", lambda: stage.episode("agent_offline", server.id, began), 60)
    row.seen_s = (episode.opened_at - began) / 1000
    row.why = f"level 2 is off; told: {episode.remedy}"
    row.channels = await _told(stage, began, name, "alerts-critical")
    row.expect("alerts-critical" in row.channels, "nobody was told in alerts-critical")
    row.expect(name in await _registered(stage), "silence was taken for unreadiness: the registration is gone")
    await stage.lab_call("POST", f"/agents/{server.vmid}/revive")
    return row


async def proxmox_unreachable(stage: Stage) -> Row:
    row = Row("Proxmox unreachable")
    began = now_ms()
    fault = await stage.fault("proxmox", "unreachable")
    episode = await stage.until("proxmox unknown", lambda: stage.episode("source_unknown", "proxmox", began), 45)
    row.seen_s = (episode.opened_at - began) / 1000
    await stage.clear(fault)
    row.why = "nothing to heal: checks that read it were left alone"
    row.channels = await _told(stage, began, "proxmox", "system-health")
    row.expect("system-health" in row.channels, "no message in system-health")
    return row


async def proxmox_rights_lost(stage: Stage) -> Row:
    """The list of containers is empty and the answer 200: taken literally, every server would be missing."""
    row = Row("Proxmox answers, but our rights are lost")
    began = now_ms()
    before = await _containers(stage)
    fault = await stage.fault("proxmox", "rights_lost")

    async def noticed() -> bool:
        s = t.sources.c
        rows = await stage.rows(select(s.reason, s.misses).where(s.source == "proxmox", s.at >= began))
        return bool(rows and rows[0].misses and "VM.Audit" in rows[0].reason)

    await stage.until("lost rights noticed", noticed, 45)
    row.seen_s = (now_ms() - began) / 1000
    await stage.clear(fault)

    async def over() -> bool:
        rows = await stage.rows(select(t.sources.c.misses).where(t.sources.c.source == "proxmox"))
        return bool(rows and rows[0].misses == 0)

    await stage.until("proxmox known again", over, 45)
    row.healed_s = (now_ms() - began) / 1000
    row.why = "an empty list is not an absence: no server was touched"
    row.expect(await _containers(stage) == before, "containers changed")
    row.channels = await stage.channels(began / 1000 - 60, "proxmox")
    return row


async def discord_down(stage: Stage, seconds: float) -> Row:
    """Alerts raised meanwhile wait in the outbox, and arrive."""
    row = Row(f"Discord down for {seconds:.0f} s", seen_s=0.0)
    began = time.time()
    fault = await stage.fault("discord", "unreachable")
    await asyncio.sleep(seconds)
    o = t.outbox.c
    held = await stage.rows(select(o.id).where(o.state == "waiting", o.created_at >= int(began * 1000)))
    await stage.clear(fault)

    async def drained() -> bool:
        rows = await stage.rows(select(o.state).where(o.id.in_([r.id for r in held])))
        return all(r.state in ("sent", "folded") for r in rows)

    await stage.until("the outbox delivered", drained, 60)
    row.healed_s = time.time() - began
    row.why = f"{len(held)} messages waited, none was lost"
    row.expect(bool(held), "no message had to wait: nothing was proven")
    row.channels = ("all of them, late",)
    return row


async def _ended(stage: Stage, action: str, since_ms: int) -> Any | None:
    repair = await stage.repair(action, since_ms)
    return repair if repair is not None and repair.outcome is not None else None


async def _registered(stage: Stage) -> set[str]:
    token = stage.settings.proxy.token.get_secret_value()
    answer = await stage.http.get(f"{stage.settings.proxy.url}/servers", headers={"Authorization": f"Bearer {token}"})
    body = answer.json()
    return {entry["name"] for entry in (body["servers"] if isinstance(body, dict) else body)}


async def _containers(stage: Stage) -> dict[str, str]:
    state = await stage.lab_call("GET", "/state")
    return {vmid: c["status"] for vmid, c in state["containers"].items()}


async def _told(stage: Stage, since_ms: int, words: str, channel: str) -> tuple[str, ...]:
    """Waits until Discord has it, then says in which channels."""

    async def arrived() -> bool:
        return bool(await stage.messages(channel, since_ms / 1000, words))

    await stage.until(f"a message about {words} in {channel}", arrived, 60)
    return await stage.channels(since_ms / 1000, words)
