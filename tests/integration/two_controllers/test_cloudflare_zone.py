"""The zone is Cloudflare's, whose API knows no prerequisites: what comes late may arrive, if it converges, and the wanted state is back within
three sweeps.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support import rig as rigs
from tests.support.disturbance import SLACK_S, drifted, goes_on, healed_within_one_expiry, past, stood_still
from tests.support.drifts import DRIFTS, WIPED, Kind, at_cloudflare
from tests.support.phases import REPAIR, SWEEP
from tests.support.rig import HEALED_S, LEASE_S, Rig
from tests.support.servers import MariaDB, Redis
from tests.support.wishes import late_publication

pytestmark = [pytest.mark.lab, pytest.mark.timeout(360), pytest.mark.asyncio(loop_scope="package")]
#: No limit of calls: every sweep lists the zone.
LAB = {
    "parts": ["proxmox", "agents", "bridge", "dns", "cloudflare", "discord", "artifacts", "runner"],
    "cloudflare": {"token": secrets.token_urlsafe(24), "requests": 100_000},
}
NAMES = {"publish": at_cloudflare(DRIFTS["publish"]), "withdraw": at_cloudflare(DRIFTS["withdraw"]), "wiped": at_cloudflare(WIPED)}
POINTS = {**SWEEP, **REPAIR[Kind.LEASED]}


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def rig(tmp_path_factory: pytest.TempPathFactory, mariadb: MariaDB, redis_server: Redis) -> AsyncIterator[Rig]:
    async with rigs.rig(tmp_path_factory.mktemp("cloudflare"), mariadb, redis_server, LAB) as made:
        yield made


def cells() -> Iterator[Any]:
    for name in ("publish", "withdraw"):
        for phase in POINTS:
            marks = [] if (name, phase) == ("publish", "inside") else [pytest.mark.soak]
            yield pytest.param(name, phase, id=f"{name}-{phase}", marks=marks)


@pytest.mark.parametrize(("name", "phase"), list(cells()))
async def test_one_stands_still_longer_than_its_lease_and_goes_on(rig: Rig, name: str, phase: str) -> None:
    a, b = rig.a, rig.b
    async with drifted(rig, NAMES[name]) as [watch]:
        at = await stood_still(rig, a, watch.drift, phase, POINTS[phase])
        mark = len(b.events)
        await rig.go(b)
        await rig.until(f"{name} healed by the other", watch.healed, HEALED_S)
        await rig.until("longer than the lease", past(at + LEASE_S + SLACK_S), 10)
        await b.swept()
        healed_within_one_expiry(b, watch.drift, at, mark)
        await goes_on(rig, a, watch)
        await watch.one_effect()


@pytest.mark.parametrize("phase", ["inside", pytest.param("before", marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", ["wiped", pytest.param("publish", marks=pytest.mark.soak)])
async def test_what_comes_late_is_taken_back(rig: Rig, name: str, phase: str) -> None:
    """A publication, when its customer is suspended. Only one that saw a free name arrives where the name is free again."""
    await late_publication(rig, NAMES[name], phase, converges=name == "wiped")
