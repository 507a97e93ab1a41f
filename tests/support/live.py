"""A live system without Prefect in one process: the real front door on a loopback port, the real dispatcher, executors as processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from flows import bootstrap
from flows.api.deps import ApiDeps
from flows.api.serve import serve
from flows.clients.notifier import DiscordNotifier
from flows.report import dispatch
from flows.settings import Settings
from flows.state import tokens
from tests.support.controller import Controller


@dataclass
class Live:
    """``settings`` know the front door's address and an admin's token; ``door`` calls it in that admin's name."""

    run: Controller
    settings: Settings

    async def door(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        return await bootstrap.front_door(self.settings)(method, path, body)


@contextlib.asynccontextmanager
async def live(run: Controller, *, deliver: bool = True) -> AsyncIterator[Live]:
    """``deliver`` False: nobody takes orders or alerts up."""
    settings, database, stop = run.deps.settings, run.deps.database, asyncio.Event()
    async with database.write() as tx:
        _, secret = await tokens.create(tx, customer_id=None, role="admin", label="test")
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    bind = settings.api.model_copy(update={"public_bind": "127.0.0.1:0", "control_bind": "127.0.0.1:0", "admin_token": SecretStr(secret)})
    notifier, catalog = DiscordNotifier(settings.notify), bootstrap.catalog(settings)
    deps = ApiDeps(database, settings.model_copy(update={"api": bind}), bootstrap.router(settings), catalog)
    tasks = [asyncio.create_task(serve(deps, stop, lambda public, _: ready.set_result(public)))]
    if deliver:
        tasks.append(asyncio.create_task(dispatch.run(database, notifier, run.engine, settings, stop)))
    try:
        api = bind.model_copy(update={"public_bind": await asyncio.wait_for(ready, 20)})
        yield Live(run, settings.model_copy(update={"api": api}))
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        await notifier.close()
        await catalog.close()
