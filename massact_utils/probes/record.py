"""Record: a few channels of every image token, kept site by site, saved and loaded as safetensors."""

import json
import math
from pathlib import Path

import torch
import xarray as xr
from safetensors import safe_open
from safetensors.torch import save_file

from ..places import atomic_write
from ..ranges import check
from .arms import channel_set, part_at
from .reading import Reading


class Record(Reading):
    """A probe that reads: K channels of every image token, at every site it sees, kept on the tokens' device.

    `channels` is a DataArray (rank), (layer, rank) or (step, layer, rank) as from `select_channels`; None keeps each
    image's own top k by mean absolute activation over its tokens, the selection of arXiv 2605.13974; of given channels
    k takes the first. Values are kept in the tokens' dtype; on a CPU float32 becomes float16 where that holds them.

    `record[step, layer]` gives (ids, values): channel ids (image, K) and values (image, N, K), images in the order they
    were generated; `record[step, layer, 1]` is a step's second evaluation. Raises KeyError, naming what there is, for a
    site that was not visited; in use ValueError for a second branch, grid or schedule, and for a layer or step that
    `channels` do not name.
    """

    def __init__(self, channels: xr.DataArray | None = None, k: int | None = None):
        super().__init__()
        channels = None if channels is None else channel_set(channels)
        if channels is not None and "channel" in channels.dims:
            raise ValueError("a Record keeps channels by their ids (rank); doses or a basis over `channel` have none")
        most = 100_000 if channels is None else channels.sizes["rank"]
        k = (12 if channels is None else most) if k is None else k
        check(k=(k, 1, most))
        self.channels, self.k = None if channels is None else channels.isel(rank=slice(k)), k
        self.grid = self.branch = None

    def __call__(self, tokens, site):
        self.branch, self.grid = self.branch or site.branch, self.grid or site.grid
        if (self.branch, self.grid) != (site.branch, site.grid):
            raise ValueError(
                f"a Record holds one branch and grid, {self.branch!r} and {self.grid}; this is {site.branch!r} and "
                f"{site.grid}: take another Record for it"
            )
        tokens = tokens.detach()
        if self.channels is not None:
            ids = part_at("channels", self.channels, site)
            if ids.max() >= tokens.shape[-1]:
                raise ValueError(f"channel {ids.max()} does not exist; there are {tokens.shape[-1]}")
            ids = torch.as_tensor(ids).to(tokens.device, torch.long).expand(len(tokens), -1)
        elif self.k <= tokens.shape[-1]:
            ids = torch.linalg.vector_norm(tokens, 1, dim=1, dtype=torch.float32).topk(self.k).indices  # B K
        else:
            raise ValueError(f"k = {self.k} channels cannot be kept of {tokens.shape[-1]}")
        values = tokens.gather(2, ids[:, None].expand(-1, tokens.shape[1], -1))  # B N K
        narrow = values.dtype == torch.float32 and values.device.type == "cpu"
        if narrow and values.abs().max() <= torch.finfo(torch.half).max:
            values = values.half()
        self.cells(site)[site.step, site.layer, site.evaluation] = ids, values

    def __getitem__(self, key) -> tuple[torch.Tensor, torch.Tensor]:
        key = (*key, 0)[:3]
        parts = [cells[key] for cells in self.finished() if key in cells]
        if not parts:
            raise KeyError(f"step, layer {key[:2]} was not recorded; steps {self.steps}, layers {self.layers} were")
        return parts[0] if len(parts) == 1 else tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def bytes_of(self, images: int, sites: int, tokens) -> int:
        """Bytes kept of so many images, at so many blocks x steps, of tokens like these (B, N, D)."""
        value = 2 if tokens.dtype == torch.float32 and tokens.device.type == "cpu" else tokens.element_size()
        return images * sites * self.k * (8 + value * tokens.shape[1])

    @property
    def sites(self) -> list[tuple[int, int]]:
        """The recorded (step, layer), in order."""
        return sorted({key[:2] for cells in self.generations.values() for key in cells})

    @property
    def steps(self) -> list[int]:
        """The recorded steps, in order."""
        return sorted({step for step, _ in self.sites})

    @property
    def layers(self) -> list[int]:
        """The recorded layers, in order."""
        return sorted({layer for _, layer in self.sites})

    def save(self, path) -> None:
        """Write the record as safetensors: ids.STEP.LAYER (image, K) and values.STEP.LAYER (image, N, K).

        Grid, branch, timesteps and layer names stand in the header. Raises RuntimeError for an empty record.
        """
        tensors = {}
        for key in dict.fromkeys(key for cells in self.finished() for key in cells):
            at = ".".join(map(str, key if key[2] else key[:2]))
            for name, tensor in zip(("ids", "values"), self[key], strict=True):
                tensors[f"{name}.{at}"] = tensor.cpu().contiguous()
        names = {layer: name for layer, (name, _) in self.blocks.items()}
        header = {"grid": self.grid, "branch": self.branch, "timesteps": self.timesteps, "names": names}
        with atomic_write(Path(path)) as beside:
            save_file(tensors, beside, {"record": json.dumps(header)})

    @classmethod
    def of(cls, sites: dict, grid, **about) -> "Record":
        """A record of values seen elsewhere: {(step, layer): (ids (image, K), values (image, N, K))} on a token grid.

        `about` are a record's branch, timesteps {step: timestep} and names {layer: name}, where they are known.
        """
        record = cls(k=next(iter(sites.values()))[0].shape[1])
        record.generations = {0: {(*site, 0)[:3]: cell for site, cell in sites.items()}}
        record.grid, record.branch = tuple(grid), about.get("branch")
        record.timesteps = {step: about.get("timesteps", {}).get(step, 0.0) for step in record.steps}
        record.blocks = {layer: (about.get("names", {}).get(layer, "tokens"), None) for layer in record.layers}
        return record

    @classmethod
    def load(cls, path) -> "Record":
        """A record as `save` wrote it, on the CPU. Raises ValueError for a file that is not one."""
        try:
            with safe_open(path, "pt") as file:
                header = json.loads(file.metadata()["record"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            named = {name.removeprefix("ids"): tensor for name, tensor in tensors.items() if name.startswith("ids.")}
            sites = {(*map(int, at[1:].split(".")),): (ids, tensors[f"values{at}"]) for at, ids in named.items()}
            for ids, values in sites.values():
                n = math.prod(header["grid"])
                if ids.is_floating_point() or ids.min() < 0 or values.shape[1:] != (n, ids.shape[1]):
                    raise ValueError(
                        f"ids {tuple(ids.shape)} of {ids.dtype} and values {tuple(values.shape)}, {n} tokens"
                    )
            header |= {name: {int(at): x for at, x in header[name].items()} for name in ("timesteps", "names")}
            return cls.of(sites, **header)
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged file fails in many ways
            raise ValueError(f"{path} is no Record ({error}); make one with record.save(path)") from error
