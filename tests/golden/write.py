"""How the scripts of this folder write losses/PEER.json: what was run, the inputs, and a case for each number."""

import json
import pathlib

import numpy as np


def plain(value):
    """Arrays and tensors, also inside dictionaries, as lists of numbers that keep every digit."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "detach"):
        value = value.detach()
    return value if isinstance(value, str) else np.asarray(value).tolist()


def write(peer: str, made_with: dict, inputs: dict, cases: dict) -> None:
    """A case names its inputs and settings, and holds a value and its gradient, whose dtype it records."""
    for case in cases.values():
        case["dtype"] = str(case["value"].dtype).removeprefix("torch.")
    path = pathlib.Path(__file__).parent / "losses" / f"{peer}.json"
    path.parent.mkdir(exist_ok=True)
    parts = {"made_with": made_with, "inputs": inputs, "cases": cases}
    path.write_text("{" + ",".join(f'\n"{name}": {_lines(plain(part))}' for name, part in parts.items()) + "\n}\n")
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size} bytes")


def _lines(part: dict) -> str:
    return "{" + ",".join(f"\n  {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items()) + "\n}"
