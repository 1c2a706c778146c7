"""Configurations as Python source, as mmaction2 keeps them: read without running them, and written."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any


def assignments(text: str) -> dict[str, Any]:
    """The plain values that a mmaction2 configuration in Python assigns. Nothing is executed.

    Understood are constants, tuples, lists, dictionaries, dict(key=value) and names assigned before; anything
    else is left out.
    """
    values: dict[str, Any] = {}
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"not plain assignments: {' '.join(str(error).split())[:120]}") from error
    for statement in statements:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            if isinstance(target, ast.Name):
                value = _value(statement.value, values)
                if value is not _UNKNOWN:
                    values[target.id] = value
    return values


_UNKNOWN = object()


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id, _UNKNOWN)
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(item, names) for item in node.elts)
    if isinstance(node, ast.Dict):
        pairs = [
            (k.value, v) for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)
        ]
        return _dict(pairs, names)
    if isinstance(node, ast.Call):
        plain = isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args
        return _dict([(k.arg, k.value) for k in node.keywords if k.arg], names) if plain else _UNKNOWN
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return _UNKNOWN


def _dict(pairs: Sequence[tuple[Any, ast.expr]], names: Mapping[str, Any]) -> dict[Any, Any]:
    values = {key: _value(node, names) for key, node in pairs}
    return {key: value for key, value in values.items() if value is not _UNKNOWN}


def source(settings: Mapping[str, object]) -> str:
    """The source that assigns these values."""
    return "".join(f"{name} = {_python(value)}\n" for name, value in settings.items())


def _python(value: object) -> str:
    """A value as Python source, dictionaries as dict(key=value)."""
    if isinstance(value, Mapping):
        return f"dict({', '.join(f'{key}={_python(item)}' for key, item in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(_python, value))}]"
    return repr(value)
