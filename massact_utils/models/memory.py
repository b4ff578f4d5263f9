"""Memory: the bytes of a pipeline's weights, and whether they fit a GPU."""

import torch


def weights(pipe) -> dict[str, int]:
    """Bytes of the weights of a pipeline's components, the largest first."""
    found = {
        name: sum(x.nbytes for x in [*part.parameters(), *part.buffers()])
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def check_room(pipe, device, offload: str | None = None) -> None:
    """Raise RuntimeError, with what would fit, for weights that are larger than the GPU they go to."""
    device = torch.device(device)
    if device.type != "cuda" or offload in ("group", "sequential"):
        return
    there, parts = torch.cuda.get_device_properties(device).total_memory, weights(pipe)
    largest, name = next(iter(parts.values())), next(iter(parts))
    needed = largest if offload == "model" else sum(parts.values())
    if needed > there:
        fits = (
            f"offload='model' ({words(largest)}) or 'group'" if largest <= there and not offload else "offload='group'"
        )
        what = f"the {name} alone has" if offload else "the model has"
        raise RuntimeError(
            f"{what} {words(needed)} of weights, and the GPU {words(there)} of memory; load with {fits}, "
            "which keeps one layer there at a time"
        )


def words(n: float) -> str:
    """Bytes in words, to three digits.

    >>> words(1_234_567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB"):
        if n < 999.5:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB" if n < 999.5 else f"{n / 1000:.3g} TB"
