"""Provenance: model, prompts and versions that results come from, without a path, a secret, or a user's name."""

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
UNHELD = ("out_dir",)  # a parameter on which no result depends
NAMES_FILES = ("model", "prompts", "pairs", "evaluator", "reference")  # a name, a Hub id, or a path
SECRET = r"(^|_)(token|secret|password|api_key)$"
ABOUT = (".md", ".webp", ".png", ".jpg")  # files of a folder that say or show, and decide nothing
WHOLE = 256 * 2**20  # bytes up to which a file is read whole
BLOCK = 1 << 16  # bytes of a larger file's every tensor


def public(parameters: dict) -> dict:
    """Parameters that results depend on, as JSON holds them; a path is its last name, a model's folder with its digest.

    >>> public({"k": 12, "prompts": "/mine/animals.txt", "load": {"token": "hf_x"}, "out_dir": "results"})
    {'k': 12, 'prompts': 'animals.txt', 'load': {'token': '(not kept)'}}
    """
    return {name: _public(name, value) for name, value in parameters.items() if name not in UNHELD}


def digest(thing) -> str:
    """A short name for anything JSON can hold: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(json.dumps(thing, sort_keys=True, default=str).encode()).hexdigest()[:16]


def content(path: Path) -> str:
    """A short name for what a file holds, or every file under a folder but hidden ones and those that decide nothing.

    A file of up to 256 MB counts with all its bytes; a larger one with its header and a block of every tensor
    (safetensors), or with 1,024 blocks evenly spread.
    """
    sums = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        inside = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts) and inside.suffix not in ABOUT:
            size = file.stat().st_size
            sums.update(f"{inside.as_posix()} {size}\n".encode())
            with open(file, "rb") as stream:
                for start, n in [(0, size)] if size <= WHOLE else _blocks(stream, size):
                    stream.seek(start)
                    sums.update(stream.read(n))
    return sums.hexdigest()[:16]


def contents(parameters: dict) -> dict:
    """What the files and folders that parameters name hold: {name: content}.

    "toy" and "emoji" stand for the embedded model with its evaluators, whichever parameter names it.
    """
    paths = {
        name: places.data(value) if value in ("toy", "emoji") else _path(value)
        for name, value in parameters.items()
        if name in NAMES_FILES
    }
    return {name: content(path) for name, path in paths.items() if path and path.exists()}


def of(parameters: dict, pipe=None) -> dict:
    """Versions, model, its revision (or digest of local files) and its weights in memory, device, dtype and seed."""
    known = {"python": platform.python_version(), "libraries": {name: _version(name) for name in PACKAGES}}
    known |= {"seed": _public("seed", parameters.get("seed")), "files": contents(parameters)}
    if pipe is None:
        return known
    model = {"name": _public("model", parameters.get("model", "")), "class": type(pipe).__name__}
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
    known |= {"model": model | in_memory(pipe), "device": name}
    return known | {"dtype": str(transformer.dtype).removeprefix("torch.")}


def in_memory(pipe) -> dict:
    """What a pipeline computes with as it is now: a digest of each component's weights, active adapters, quantiser.

    Of every weight count its name, dtype, shape, first 1,024 values and the sum of all its bits, which is exact and the
    same on every device. Weights that are not in memory, as under sequential offloading, count without values.
    """
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    known = {"in memory": {name: _weights(module) for name, module in modules.items()}, "adapters": {}}
    for name, module in modules.items():
        quantiser = getattr(getattr(module, "config", None), "quantization_config", None)
        if quantiser is not None:
            known.setdefault("quantised", {})[name] = digest(getattr(quantiser, "to_dict", lambda q=quantiser: q)())
        for part in module.modules():
            for adapter in getattr(part, "active_adapters", None) or () if hasattr(part, "scaling") else ():
                if adapter in part.scaling and not getattr(part, "disable_adapters", False):
                    scales = known["adapters"].setdefault(f"{name}.{adapter}", [])
                    scales += [float(part.scaling[adapter])] * (float(part.scaling[adapter]) not in scales)
    return known


def differences(before: dict, now: dict) -> list[str]:
    """What differs, in words.

    >>> differences({"k": 4, "libraries": {"torch": "2.1"}}, {"k": 4, "libraries": {"torch": "2.2"}})
    ["libraries.torch = '2.1' there, '2.2' here"]
    """
    before, now = _flat(before), _flat(now)
    names = [name for name in {**before, **now} if json.dumps(before.get(name)) != json.dumps(now.get(name))]
    return [f"{name} = {before.get(name, '(none)')!r} there, {now.get(name, '(none)')!r} here" for name in names]


def _blocks(stream, size: int):
    """(start, length) of the parts of a large file that stand for it."""
    if str(stream.name).endswith(".safetensors"):
        header = int.from_bytes(stream.read(8), "little")
        if header < size:
            tensors = json.loads(stream.read(header))
            starts = sorted(t["data_offsets"][0] for name, t in tensors.items() if name != "__metadata__")
            return [(0, 8 + header), *((8 + header + start, BLOCK) for start in starts)]
    return [((size - BLOCK) * i // 1023, BLOCK) for i in range(1024)]


def _weights(module) -> str:
    sums = hashlib.sha256()
    for name, x in module.state_dict().items():
        name = name.replace("_orig_mod.", "").removeprefix("module.")
        if not isinstance(x, torch.Tensor):
            continue
        sums.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        try:
            bits = x.detach().contiguous().view(torch.uint8 if x.element_size() != 4 else torch.int32).flatten()
            total = torch.sum(bits, dtype=torch.int64)
            sums.update(bits[:1024].cpu().numpy().tobytes() + str(int(total)).encode())
        except (RuntimeError, NotImplementedError, TypeError):  # not in memory, or packed by a quantiser
            continue
    return sums.hexdigest()[:16]


def _flat(tree: dict, at: str = "") -> dict:
    return {
        key: leaf
        for name, value in tree.items()
        for key, leaf in (_flat(value, f"{at}{name}.") if isinstance(value, dict) else {f"{at}{name}": value}).items()
    }


def _path(value) -> Path | None:
    """The path a parameter names; None for anything else, Hub ids among it."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value:
        return None
    where = os.path.expanduser(KNOWN.get(value, (value,))[0])
    return Path(where) if os.path.isabs(where) or os.path.exists(where) else None


def _public(name: str, value):
    """A parameter's value as JSON holds it, without paths and secrets."""
    if isinstance(value, dict):
        return {str(key): _public(str(key), part) for key, part in value.items()}
    if hasattr(value, "tolist"):  # NumPy, torch
        value = value.tolist()
    if isinstance(value, (list, tuple, set, range)):
        return [_public(name, part) for part in value]
    if value and re.search(SECRET, name):
        return "(not kept)"
    if value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and value in KNOWN):
        return value
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        path = _path(text) if name in NAMES_FILES else None
        if path is None and not text.startswith(("/", "~", "..")):
            return text
        path = (path or Path(text).expanduser()).resolve()
        end = f"-{content(path)[:6]}" if name in NAMES_FILES and path.is_dir() else ""
        return re.sub(r"[^\w.+-]", "-", path.name) + end
    return str(value)


@cache
def _version(package: str) -> str:
    """A package's version; this one's with a digest of its source, which changes between versions."""
    try:
        source = [path.read_text() for path in sorted(places.PACKAGE.rglob("*.py"))]
        return f"{version(package)}+{digest(source)[:8]}" if package == "massact" else version(package)
    except PackageNotFoundError:
        return "not installed"
