"""Where results come from: model, prompts and versions, without a path, a user's or a machine's name."""

import hashlib
import json
import os
import platform
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .. import places
from ..models.families import transformers_of
from ..models.load import KNOWN

PACKAGES = ("massact", "torch", "diffusers", "transformers", "accelerate", "numpy", "scipy", "scikit-learn", "pandas")
UNHELD = ("out_dir", "shard")  # parameters on which no result depends
NAMES_FILES = ("model", "prompts", "pairs", "evaluator", "reference")  # a name, a Hub id, or a path


def public(parameters: dict) -> dict:
    """Parameters that results depend on, a path reduced to its last name.

    >>> public({"k": 12, "prompts": "/mine/animals.txt", "out_dir": "results"})
    {'k': 12, 'prompts': 'animals.txt'}
    """
    return {name: _named(name, value) for name, value in parameters.items() if name not in UNHELD}


def digest(thing) -> str:
    """A short name for anything JSON can hold: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(json.dumps(thing, sort_keys=True, default=str).encode()).hexdigest()[:16]


def content(path: Path) -> str:
    """A short name for what a file, or the safetensors under a folder, holds.

    Of large files 64 blocks, evenly spread, stand for the rest, so that tens of gigabytes take a second.
    """
    found, block = hashlib.sha256(), 1 << 16
    for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        size = file.stat().st_size
        found.update(f"{file.relative_to(path).as_posix()} {size}".encode())
        with open(file, "rb") as stream:
            for i in range(64):
                stream.seek(max(size - block, 0) * i // 63)
                found.update(stream.read(block))
                if size <= block:
                    break
    return found.hexdigest()[:16]


def files(parameters: dict) -> dict:
    """What stands in the files and folders that parameters name: {name: content}.

    "toy" stands for the embedded model with its evaluators, whichever parameter names it.
    """
    paths = {
        name: places.data("toy") if value == "toy" else _path(value)
        for name, value in parameters.items()
        if name in NAMES_FILES
    }
    return {name: content(path) for name, path in paths.items() if path and path.exists()}


def of(parameters: dict, pipe=None) -> dict:
    """Versions, model and its revision (or a hash of local weights), device, dtype and seed."""
    found = {"python": platform.python_version(), "libraries": {name: _version(name) for name in PACKAGES}}
    found |= {"seed": parameters.get("seed"), "files": files(parameters)}
    if pipe is None:
        return found
    model = {"name": _named("model", parameters.get("model", "")), "class": type(pipe).__name__}
    origin = str(getattr(pipe, "name_or_path", None) or pipe.config.get("_name_or_path") or "")
    if origin and Path(origin).is_dir() and "snapshots" not in origin:
        model["weights"] = content(Path(origin))
    else:
        configs = [
            str(getattr(getattr(part, "config", None), "_name_or_path", "")) for part in pipe.components.values()
        ]
        commits = re.findall(r"snapshots[/\\]([0-9a-f]{40})", " ".join(map(str, [origin, *configs])))
        model["revision"] = commits[0] if commits else parameters.get("revision") or "unknown"
    transformer, _ = transformers_of(pipe)[0]
    device = torch.device(getattr(pipe, "_execution_device", None) or transformer.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return found | {"model": model, "device": name, "dtype": str(transformer.dtype).removeprefix("torch.")}


def differences(there: dict, here: dict) -> list[str]:
    """What differs, in words.

    >>> differences({"k": 4, "libraries": {"torch": "2.1"}}, {"k": 4, "libraries": {"torch": "2.2"}})
    ["libraries.torch = '2.1' there, '2.2' here"]
    """
    there, here = _flat(there), _flat(here)
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return [f"{name} = {there.get(name, '(none)')!r} there, {here.get(name, '(none)')!r} here" for name in names]


def _flat(tree: dict, at: str = "") -> dict:
    return {
        key: leaf
        for name, value in tree.items()
        for key, leaf in (_flat(value, f"{at}{name}.") if isinstance(value, dict) else {f"{at}{name}": value}).items()
    }


def _path(value) -> Path | None:
    """The path a parameter names; None for anything else, Hub ids among it."""
    if not isinstance(value, str) or not value:
        return None
    where = os.path.expanduser(KNOWN.get(value, (value,))[0])
    return Path(where) if os.path.isabs(where) or os.path.exists(where) else None


def _named(name, value):
    """A parameter's value, a path among those that name files, or any absolute one, reduced to its last name."""
    path = (
        _path(value)
        if name in NAMES_FILES
        else Path(value)
        if isinstance(value, str) and os.path.isabs(value)
        else None
    )
    return value if path is None or value in KNOWN else path.name


@cache
def _version(package: str) -> str:
    """A package's version; this one's with a digest of its source, which changes between versions."""
    try:
        source = [path.read_text() for path in sorted(places.PACKAGE.rglob("*.py"))]
        return f"{version(package)}+{digest(source)[:8]}" if package == "massact" else version(package)
    except PackageNotFoundError:
        return "not installed"
