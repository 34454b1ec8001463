"""The request models have no unbounded number, list, mapping or text anywhere."""

from __future__ import annotations

from typing import Any

import pytest

from app.rest import schema


def unbounded(part: dict[str, Any], where: str) -> list[str]:
    """Where a JSON schema lacks a bound."""
    found: list[str] = []
    kind = part.get("type")
    if "enum" in part or "const" in part:
        return []
    if kind == "string" and "maxLength" not in part:
        found.append(f"{where}: text")
    if kind in ("integer", "number"):
        lower = {"minimum", "exclusiveMinimum"} & part.keys()
        upper = {"maximum", "exclusiveMaximum"} & part.keys()
        if not (lower and upper):
            found.append(f"{where}: number")
    if kind == "array" and "maxItems" not in part:
        found.append(f"{where}: list")
    if kind == "object" and part.get("additionalProperties") is not False and "maxProperties" not in part:
        found.append(f"{where}: mapping")
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for index, each in enumerate(part.get(name, ())):
            found += unbounded(each, f"{where}.{index}")
    for name in ("items", "additionalProperties", "propertyNames"):
        if isinstance(part.get(name), dict):
            if name == "propertyNames" and "type" not in part[name]:
                part = {**part, name: {"type": "string", **part[name]}}
            found += unbounded(part[name], f"{where}.{name}")
    for name, each in {**part.get("properties", {}), **part.get("patternProperties", {})}.items():
        found += unbounded(each, f"{where}.{name}")
    return found


BODIES = [
    value
    for value in vars(schema).values()
    if isinstance(value, type) and issubclass(value, schema.Body) and value is not schema.Body
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_everything_is_bounded(body: type[schema.Body]):
    described = body.model_json_schema()
    found = unbounded(described, body.__name__)
    for name, part in described.get("$defs", {}).items():
        found += unbounded(part, name)
    assert found == []


def test_the_search_for_bounds_finds_what_lacks_them():
    class Loose(schema.Body):
        text: str
        number: int
        items: list[schema.TokenId]
        named: dict[str, str]

    found = unbounded(Loose.model_json_schema(), "")
    assert [each.split(": ")[1] for each in found] == ["text", "number", "list", "mapping", "text"]


def test_bodies_were_found():
    assert {"ChatRequest", "CompletionRequest", "TokenizeRequest", "DetokenizeRequest", "Message"} <= {
        body.__name__ for body in BODIES
    }
