"""From a request's body to the creation transaction and back."""

from __future__ import annotations

from collections.abc import Collection

from flows.api.catalog_cache import Promoted
from flows.api.deps import ApiDeps
from flows.api.models import CreateBody
from flows.api.problems import Problem, invalid
from flows.domain.flavor import misfit
from flows.domain.intake import Accepted, Creation
from flows.domain.server import ContainerType, Runtime
from flows.errors import AutomationError, Conflict, NotFound, Unreachable
from flows.state import intake
from flows.state.tokens import Caller

#: Versions that a refusal names at most.
NAMED = 8


def order_of(body: CreateBody, caller: Caller) -> Creation:
    """Raises 403 for somebody else's account, 422 where an admin names none."""
    customer_id = body.customer_id if caller.role == "admin" else caller.customer_id
    if caller.role != "admin" and body.customer_id not in (None, caller.customer_id):
        raise Problem("forbidden", "this token orders for its own customer alone")
    if customer_id is None:
        raise invalid([("customer_id", "an admin names the customer to order for")])
    return Creation(
        customer_id=customer_id,
        actor=caller.actor,
        ctype=ContainerType(body.ctype),
        name=body.name,
        flavor=body.flavor,
        version=body.version,
        memory_mb=body.memory_mb,
        cores=body.cores,
        disk_gb=body.disk_gb,
        nonce=body.request_nonce,
        body_hash=body.fingerprint(),
        runtimes=tuple(Runtime(r.name, r.version) for r in body.runtimes or ()),
        code_server=bool(body.enable_code_server),
        token_id=caller.token_id,
    )


async def submit(deps: ApiDeps, order: Creation) -> Accepted:
    """Commits the order, or finds it. The catalog is asked before, never inside, the transaction; a repeat of what was accepted once
    is answered even if the catalog has changed or gone since."""
    try:
        await _check(deps, order)
    except (Problem, AutomationError):
        repeated = await _find(deps, order)
        if repeated is None:
            raise
        return repeated
    try:
        return await deps.database.apply(lambda tx: intake.create(tx, order, place=deps.place, ranges=deps.ranges))
    except NotFound as error:
        raise invalid([("customer_id", "no such customer")]) from error
    except Conflict as error:
        # A uniqueness of the database: the same order (or name) was committed by another process in the same moment.
        if error.kind not in ("", "name_taken", "nonce_used", "no_capacity", "quota"):
            raise
        repeated = await _find(deps, order)
        if repeated is None:
            raise
        return repeated
    except Unreachable:
        # The commit itself may have been what got no answer: look before saying that nothing was recorded.
        try:
            repeated = await _find(deps, order)
        except Unreachable:
            repeated = None
        if repeated is None:
            raise
        return repeated


async def _find(deps: ApiDeps, order: Creation) -> Accepted | None:
    async with deps.database.read() as tx:
        return await intake.repeat_of(tx, order)


async def _check(deps: ApiDeps, order: Creation) -> None:
    """Flavor and type must agree, whatever the catalog does. Only promoted versions can be ordered. Without any catalog a game goes on
    (its jar is looked up again when it is built); a runtime, which the customer picked from that very catalog, does not. Raises 422 by
    field, and what the catalog raises."""
    wrong = misfit(order.ctype, order.flavor, order.version)
    if wrong is not None:
        raise invalid([wrong])
    try:
        promoted = await deps.promoted.promoted()
    except AutomationError:
        if order.runtimes or order.code_server:
            raise
        return
    errors = _game(promoted, order) if order.ctype is ContainerType.GAME else _runtimes(promoted, order)
    if errors:
        raise invalid(errors)


def _game(promoted: Promoted, order: Creation) -> list[tuple[str, str]]:
    if order.flavor not in promoted.names("jar"):
        return [("flavor", "is not in the catalog")]
    if order.version not in promoted.versions("jar", order.flavor):
        return [("version", f"is not a promoted version of {order.flavor}: {_named(promoted.versions('jar', order.flavor))}")]
    return []


def _runtimes(promoted: Promoted, order: Creation) -> list[tuple[str, str]]:
    errors = []
    for index, runtime in enumerate(order.runtimes):
        if runtime.name not in promoted.names("runtime"):
            errors.append((f"runtimes.{index}.name", "is not in the catalog"))
        elif runtime.version not in promoted.versions("runtime", runtime.name):
            known = _named(promoted.versions("runtime", runtime.name))
            errors.append((f"runtimes.{index}.version", f"is not a promoted version of {runtime.name}: {known}"))
    return errors


def _named(versions: Collection[str]) -> str:
    """The catalog's versions, as many as a line holds."""
    listed = sorted(versions)
    return ", ".join(listed[:NAMED]) + (f" and {len(listed) - NAMED} more" if len(listed) > NAMED else "")
