"""/api/v1/openapi.json, made from the same Operations that route and check. Pure."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from tocsin_collector.web.api.call import Operation
from tocsin_collector.web.api.problem import Problem

PREFIX = "/api/v1"


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    types: list[Any] = [Problem]
    for operation in operations:
        types += [t for t in (operation.answer, operation.body) if t is not None]
    _, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(PREFIX + operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tocsin", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": {
            str(operation.status): {
                "description": "Done",
                "content": {"application/json": {"schema": _schema(operation.answer)}},
            },
            "default": {
                "description": "A problem (RFC 9457)",
                "content": {"application/problem+json": {"schema": _schema(Problem)}},
            },
        },
    }
    if operation.body:
        told["requestBody"] = {"content": {"application/json": {"schema": _schema(operation.body)}}}
    if operation.role:
        told["security"] = [{"bearer": []}]
        told["x-role"] = operation.role
    return told


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    for field in msgspec.structs.fields(operation.query):
        found.append(
            {"name": field.encode_name, "in": "query", "required": field.required, "schema": _schema(field.type)}
        )
    return found


def _schema(type_: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([type_], ref_template="#/components/schemas/{name}")
    return schema
