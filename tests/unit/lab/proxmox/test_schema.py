"""Every answer of the face, and every parameter it takes, against the API schema that Proxmox publishes (as fakepve ships it, test-only)."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from flows.lab.proxmox.params import P
from flows.lab.proxmox.routing import ROUTES

from .conftest import Api

#: What ``/nodes`` answers beyond its schema, because others need it: the Ansible inventory reads ``type``.
NUMERIC = {"type": "string", "pattern": r"^-?\d+(\.\d+)?$"}


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    spec = importlib.util.find_spec("fakepve")
    assert spec is not None and spec.origin is not None
    with gzip.open(Path(spec.origin).parent / "data" / "pve-api.json.gz") as file:
        paths: dict[str, Any] = json.load(file)["paths"]
    return paths


def convert(schema: dict[str, Any]) -> dict[str, Any]:
    """PVE's schema → JSON Schema: ``optional`` inverted, booleans as 0/1, numbers also as numeric strings, formats dropped."""
    kind = schema.get("type")
    if kind == "boolean":
        return {"enum": [0, 1, True, False, "0", "1", ""]}
    if kind in ("integer", "number"):
        return {"anyOf": [{"type": kind, **{k: schema[k] for k in ("minimum", "maximum") if isinstance(schema.get(k), (int, float))}}, NUMERIC]}
    if kind == "null":
        return {"type": "null"}
    if kind == "array":
        return {"type": "array", "items": convert(schema.get("items", {}))}
    if kind == "object":
        properties, patterns = {}, {}
        for name, item in schema.get("properties", {}).items():
            if name.endswith("[n]"):
                patterns[rf"^{name[:-3]}\d+$"] = convert(item)
            else:
                properties[name] = convert(item)
        required = [n for n, i in schema.get("properties", {}).items() if not i.get("optional") and not n.endswith("[n]")]
        made: dict[str, Any] = {"type": "object", "properties": properties, "patternProperties": patterns, "required": required}
        if schema.get("additionalProperties") == 0:
            made["additionalProperties"] = False
        return made
    return {"enum": schema["enum"]} if "enum" in schema else ({"type": "string"} if kind == "string" else {})


def check(published: dict[str, Any], method: str, template: str, data: Any) -> None:
    jsonschema.validate(data, convert(published[template][method]["returns"]))


READS = [
    "/version", "/access/permissions", "/cluster/resources", "/cluster/status", "/cluster/nextid", "/cluster/tasks", "/nodes",
    "/nodes/{node}/version", "/nodes/{node}/status", "/nodes/{node}/time", "/nodes/{node}/network", "/nodes/{node}/lxc", "/nodes/{node}/qemu",
    "/nodes/{node}/tasks", "/nodes/{node}/storage", "/nodes/{node}/storage/{storage}/content", "/nodes/{node}/storage/{storage}/status",
    "/nodes/{node}/lxc/{vmid}/config", "/nodes/{node}/lxc/{vmid}/status/current", "/nodes/{node}/lxc/{vmid}/interfaces",
    "/nodes/{node}/lxc/{vmid}/snapshot", "/nodes/{node}/lxc/{vmid}/snapshot/{snapname}/config", "/pools", "/storage",
]  # fmt: skip


async def test_answers_satisfy_the_published_schema(api: Api, published: dict[str, Any]) -> None:
    path = await api.ready(running=True)
    assert await api.done("post", f"{path}/snapshot", snapname="snap") == "OK"
    seen = 0
    for template in READS:
        data = await api.get(template.lstrip("/").format(node="pve1", storage="local-lvm", vmid=10000, snapname="snap"))
        check(published, "GET", template, data)
        assert data or template in ("/pools", "/nodes/{node}/qemu"), f"{template} was empty: nothing was checked"
        seen += 1
    assert seen == len(READS)


async def test_tasks_and_locked_containers_satisfy_it_too(api: Api, published: dict[str, Any]) -> None:
    upid = await api.clone(10000)
    check(published, "POST", "/nodes/{node}/lxc/{vmid}/clone", upid)
    check(published, "GET", "/nodes/{node}/tasks/{upid}/status", await api.get(f"nodes/pve1/tasks/{upid}/status"))
    for template in ("/cluster/resources", "/nodes/{node}/lxc/{vmid}/config", "/nodes/{node}/lxc/{vmid}/status/current"):
        check(published, "GET", template, await api.get(template.lstrip("/").format(node="pve1", vmid=10000)))
    await api.end(upid)
    check(published, "GET", "/nodes/{node}/tasks/{upid}/status", await api.get(f"nodes/pve1/tasks/{upid}/status"))
    check(published, "GET", "/nodes/{node}/tasks/{upid}/log", await api.get(f"nodes/pve1/tasks/{upid}/log"))
    check(published, "PUT", "/nodes/{node}/lxc/{vmid}/config", await api.put("nodes/pve1/lxc/10000/config", cores=2))


def test_the_conversion_notices_a_wrong_answer(published: dict[str, Any]) -> None:
    for template, wrong in (("/nodes", [{"node": "pve1"}]), ("/cluster/status", [{"type": "cluster"}]), ("/cluster/nextid", "abc")):
        with pytest.raises(jsonschema.ValidationError):
            check(published, "GET", template, wrong)


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.method} {r.template}")
def test_parameters_are_those_of_the_published_schema(route: Any, published: dict[str, Any]) -> None:
    """The same names, the same obligation, the same type: nothing is accepted that the real one refuses, and nothing refused."""
    wanted = published[route.template][route.method]["parameters"].get("properties", {})
    assert set(route.schema) == set(wanted)
    for name, spec in route.schema.items():
        assert isinstance(spec, P)
        assert spec.kind == wanted[name].get("type", "string"), name
        assert spec.optional == bool(wanted[name].get("optional")), name
        for ours, theirs in ((spec.minimum, "minimum"), (spec.maximum, "maximum"), (spec.max_length, "maxLength")):
            if ours is not None and theirs in wanted[name]:
                assert ours == float(wanted[name][theirs]), (name, theirs)
        if spec.enum:
            assert list(spec.enum) == wanted[name]["enum"], name


def test_methods_are_public_ones(published: dict[str, Any]) -> None:
    assert {(r.method, r.template) for r in ROUTES} <= {(m, p) for p, methods in published.items() for m in methods}
