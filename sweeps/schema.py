"""The JSON Schema of a spec, with every training field, its unit and its default."""

from __future__ import annotations

import re
from typing import Any

from em_core.config import PARAMS, TrainingConfig, reads
from em_core.known_methods import IMPORTED, KNOWN
from sweeps.spec import Spec


def spec_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) for editors: what a spec may say, and what each value means."""
    schema = Spec.model_json_schema()
    training = TrainingConfig.model_json_schema()
    fields: dict[str, Any] = training["properties"]
    for name, field in fields.items():
        field["description"] += f" Read by: {', '.join(m for m in KNOWN if m != IMPORTED and name in reads(m))}."
    param = fields.pop("params")["description"]
    fields["prompt"] = {"description": fields["prompt"]["description"], "type": ["string", "object"]}
    table: dict[str, Any] = {"type": "object", "required": ["table", "top"]}
    spaced = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "propertyNames": {"enum": ["geomspace", "linspace", "range"]},
    }
    values = {
        n: {"description": f["description"], "anyOf": [{"type": "array", "minItems": 1}, spaced]} for n, f in fields.items()
    }
    values["prompt"]["anyOf"].append(table)
    either = {n: {"description": f["description"], "anyOf": [f, *values[n]["anyOf"]]} for n, f in fields.items()}
    single = {"description": param, "type": ["string", "number", "boolean"]}
    several: dict[str, Any] = {"description": param, "anyOf": [{"type": "array", "minItems": 1}, spaced]}
    schema["$defs"] |= {
        "Fields": _closed(fields, single),
        "Axes": _closed(values, several),
        "Arm": _closed(either, {"description": param, "anyOf": [single, *several["anyOf"]]}),
    }
    properties = schema["properties"]
    properties["base"] |= {"$ref": "#/$defs/Fields"}
    properties["axes"] |= {"$ref": "#/$defs/Axes"}
    properties["zip"]["items"] = {"$ref": "#/$defs/Axes"}
    properties["arms"]["additionalProperties"] = {"$ref": "#/$defs/Arm"}
    for section in ("base", "axes"):
        properties[section].pop("additionalProperties", None)
    _add_search(schema, fields, single)
    rules: dict[str, Any] = {"$ref": "#/$defs/Resources"}
    from sweeps.resources import Resources

    schema["$defs"]["Resources"] = Resources.model_json_schema()
    schema["$defs"]["Resources"]["patternProperties"] = {"^slurm_": {}}
    schema["$defs"]["Resources"]["additionalProperties"] = False
    properties["resources"]["anyOf"] = [rules, {"type": "array", "items": rules}]
    return schema


def _add_search(schema: dict[str, Any], fields: dict[str, Any], param: dict[str, Any]) -> None:
    """A study searches fields, and has no `seeds`: those of its trials stand under `search`."""
    about = {n: {"description": f["description"]} for n, f in fields.items()}
    bounds: dict[str, Any] = {"anyOf": [{"$ref": "#/$defs/Dimension"}, {"type": "array", "minItems": 1}]}
    some: dict[str, Any] = {"type": "array", "minItems": 1}
    schema["$defs"] |= {
        "Space": {**_closed({n: a | bounds for n, a in about.items()}, bounds), "minProperties": 1},
        "Point": _closed(fields, param),
        "Condition": _closed({n: a | {"anyOf": [fields[n], some]} for n, a in about.items()}, {"anyOf": [param, some]}),
    }
    search, dimension = schema["$defs"]["Search"]["properties"], schema["$defs"]["Dimension"]["properties"]
    for where, key, name in ((search, "space", "Space"), (dimension, "when", "Condition")):
        where[key] = {"description": where[key]["description"], "$ref": f"#/$defs/{name}"}
    search["enqueue"]["items"] = {"$ref": "#/$defs/Point"}
    schema["required"].remove("seeds")
    schema["oneOf"] = [{"required": ["seeds"]}, {"required": ["search"]}]


def _closed(properties: dict[str, Any], param: dict[str, Any]) -> dict[str, Any]:
    """An object of these fields and any `params.NAME`, and of no others."""
    own = {f"^{re.escape(PARAMS)}": param}
    return {"type": "object", "properties": properties, "patternProperties": own, "additionalProperties": False}
