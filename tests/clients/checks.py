"""Runs the checks of a client script: every function whose name begins with check_, each on its own.

A script takes the server's address as its argument, starts nothing, and exits with 1 when a check failed.
"""

import sys
import traceback

# Small enough that any model ends it soon: the grammar, not the model, makes the answer right.
SCHEMA = {
    "type": "object",
    "properties": {"safe": {"type": "boolean"}, "size": {"type": "string", "enum": ["small", "large"]}},
    "required": ["safe", "size"],
    "additionalProperties": False,
}

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def fits_schema(value):
    assert set(value) == {"safe", "size"}, value
    assert isinstance(value["safe"], bool) and value["size"] in ("small", "large"), value


def base_url():
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} http://HOST:PORT")
    return sys.argv[1].rstrip("/")


def fails_with(error, call):
    """The exception of type `error` that `call` raises."""
    try:
        answer = call()
    except error as e:
        return e
    raise AssertionError(f"expected {error.__name__}, got {answer!r}")


def run(name, module):
    checks = [(n, f) for n, f in module.items() if n.startswith("check_")]
    failed = 0
    for check, function in checks:
        try:
            function()
            print(f"  ok    {name} {check.removeprefix('check_')}")
        except Exception:
            failed += 1
            print(f"  FAIL  {name} {check.removeprefix('check_')}")
            traceback.print_exc(file=sys.stdout)
    print(f"{name}: {len(checks) - failed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)
