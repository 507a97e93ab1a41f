"""``python -m flows.lab --config FILE.json``: starts every part, writes the state file when all listen, ends on SIGTERM or SIGINT.

The world lives in memory: an end of the process is the end of every container, in fleet ``lxc`` of the real ones.
Exit 0: ended as asked · 1: a part could not start · 2: wrong usage or configuration · 3: a port is taken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import importlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from flows.errors import AutomationError, BadInput
from flows.lab import launch, needs, program
from flows.lab.config import LabConfig, load
from flows.lab.control import Control
from flows.lab.faults import Faults
from flows.lab.part import Part
from flows.lab.substance import Records, Substance, SubstanceError
from flows.lab.world import World

log = logging.getLogger("flows.lab")


def substance(config: LabConfig) -> Substance:
    """What stands behind the containers of the configured fleet."""
    if config.lxc is None:
        return Records()
    from flows.lab.lxc import Machines

    return Machines(config.directory, IPv4Network(config.lxc.network), config.lxc.images)


async def aside(work: Callable[[], None]) -> None:
    """Does it in a thread that the end of this process does not wait for, as it would for one of asyncio's own."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as failed:  # noqa: BLE001 - it belongs to who waits
            error = failed
        with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="aside", daemon=True).start()
    await done


class Lab:
    """All parts of one lab in one event loop."""

    def __init__(self, config: LabConfig) -> None:
        self.config, self.world, self.faults = config, World(substance(config)), Faults()
        self.parts: dict[str, Part] = {}
        self.control = Control(config.control, self.world, self.faults, self.parts)

    async def start(self) -> None:
        """Everything listens when it returns. What did start is stopped again if something cannot."""
        try:
            await self._prepare()
            for name in self.config.parts:
                log.info("starting %s", name)
                module = importlib.import_module(f"flows.lab.{name}")
                self.parts[name] = await module.start(self.config, self.world, self.faults)
            await self.control.open()
        except BaseException:
            await self.stop()
            raise

    async def _prepare(self) -> None:
        """What takes long the first time: programs' wares, the containers' image. Fleet ``sim`` needs neither."""
        wares = self.config.artifacts.directory
        if self.config.fleet == "lxc":
            needs.require()
            if wares is not None and "artifacts" in self.config.parts:
                from flows.lab.wares import prepare

                log.info("preparing what the artifact server serves")
                await aside(lambda: prepare(wares, self.config.runner.project_dir))
            log.info("preparing the containers' image and network; the first time that builds a Debian, in about a minute")
        await self.world.substance.open()

    async def stop(self) -> None:
        """Every part, then what stands behind the containers; one that cannot end does not keep the others."""
        await self.control.stop()
        try:
            for name in reversed(list(self.parts)):
                try:
                    await self.parts.pop(name).stop()
                except Exception:
                    log.exception("stopping %s", name)
        finally:
            await self.world.substance.close()

    def state(self) -> dict[str, Any]:
        """What the state file holds. No secret: those are in the configuration of whoever started the lab."""
        return {
            "pid": os.getpid(),
            "started": program.start_ticks(os.getpid()),
            "fleet": self.config.fleet,
            "control": self.control.site.url,
            "endpoints": {name: dict(part.endpoints) for name, part in self.parts.items()},
            "nodes": self._nodes(),
        }

    def _nodes(self) -> list[dict[str, Any]]:
        """The nodes as the product's placement wants them."""
        proxmox = self.config.proxmox
        return [
            {
                "name": node.name,
                "address": node.address,
                "memory_mb": node.memory_mb,
                "disk_gb": node.disk_gb,
                "cores": node.cores,
                "storage": next((s.name for s in proxmox.storages if "rootdir" in s.content and (not s.nodes or node.name in s.nodes)), ""),
                "bridge": next(iter(proxmox.bridges), ""),
                "templates": {t.flavor: t.vmid for t in proxmox.templates if t.node == node.name},
            }
            for node in proxmox.nodes
        ]


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Atomically, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(state, file, indent=1)
        file.write("\n")
    fresh.replace(path)


async def run(config: LabConfig) -> None:
    """Runs until a signal comes."""
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    lab = Lab(config)
    starting, asked = asyncio.create_task(lab.start()), asyncio.create_task(ending.wait())
    await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return
    asked.cancel()
    await starting
    try:
        write_state(config.state_file, lab.state())
        log.info("ready: control %s, parts %s", lab.control.site.url, ", ".join(lab.parts))
        await ending.wait()
    finally:
        config.state_file.unlink(missing_ok=True)
        await lab.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.lab", description="the whole fleet on one machine, without Proxmox")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.json")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        config = load(arguments.config)
    except BadInput as error:
        log.error("%s", error)
        return 2
    try:
        asyncio.run(run(config))
    except (OSError, ImportError, AutomationError, SubstanceError) as error:
        log.error("a part could not start: %s", error)
        return launch.PORT_TAKEN if getattr(error, "errno", None) == errno.EADDRINUSE else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
