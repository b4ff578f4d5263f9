"""Record: a few channels of every image token, kept site by site, saved and loaded as safetensors."""

import json
from pathlib import Path

import torch
import xarray as xr
from safetensors import safe_open
from safetensors.torch import save_file

from ..places import atomic_write


class Record:
    """A probe that reads: K channels of every image token, at every site it sees, kept on the tokens' device.

    `channels` is a DataArray (rank), (layer, rank) or (step, layer, rank) as from `select_channels`; None keeps each
    image's own top k by mean absolute activation over its tokens, the selection of arXiv 2605.13974; of given channels
    k takes the first. Values are kept in the tokens' dtype; on a CPU float32 becomes float16 where that holds them.
    `host()` moves what was recorded off a GPU. One branch to a record, else ValueError.

    `record[step, layer]` gives (ids, values): channel ids (image, K) and values (image, N, K), images in the order they
    were generated. Raises KeyError, naming what there is, for a site that was not visited.
    """

    edits = False

    def __init__(self, channels: xr.DataArray | None = None, k: int | None = None):
        most = None if channels is None else channels.sizes["rank"]
        k = k if k is not None else most or 12
        if not 1 <= k <= (most or k):
            raise ValueError(f"k = {k} channels cannot be kept; allowed: 1 {f'to {most}' if most else 'or more'}")
        self.channels, self.k = None if channels is None else channels.isel(rank=slice(k)), k
        self.sites = {}  # (step, layer) -> {generation: ids (B K), values (B N K)}
        self.timesteps, self.names = {}, {}
        self.grid = self.branch = None

    def __call__(self, tokens, site):
        self.branch, self.grid = self.branch or site.branch, self.grid or site.grid
        if (self.branch, self.grid) != (site.branch, site.grid):
            raise ValueError(
                f"a Record holds one branch and grid, {self.branch!r} and {self.grid}; this is {site.branch!r} and "
                f"{site.grid}: take another Record for it"
            )
        tokens = tokens.detach()
        if self.channels is None:
            if self.k > tokens.shape[-1]:
                raise ValueError(f"k = {self.k} channels cannot be kept of {tokens.shape[-1]}")
            ids = torch.linalg.vector_norm(tokens, 1, dim=1, dtype=torch.float32).topk(self.k).indices  # B K
        else:
            at = {dim: {"layer": site.layer, "step": site.step}[dim] for dim in self.channels.dims if dim != "rank"}
            ids = torch.as_tensor(self.channels.sel(at).values.copy(), device=tokens.device).expand(len(tokens), -1)
        values = tokens.gather(2, ids[:, None].expand(-1, tokens.shape[1], -1))  # B N K
        if values.dtype == torch.float32 and not values.is_cuda and values.abs().max() <= torch.finfo(torch.half).max:
            values = values.half()
        self.timesteps[site.step], self.names[site.layer] = site.timestep, site.name
        self.sites.setdefault((site.step, site.layer), {})[site.generation] = ids, values

    def __getitem__(self, key) -> tuple[torch.Tensor, torch.Tensor]:
        if key not in self.sites:
            raise KeyError(f"step, layer {key} was not recorded; steps {self.steps}, layers {self.layers} were")
        parts = [part for _, part in sorted(self.sites[key].items(), key=lambda item: item[0])]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def bytes_of(self, images: int, sites: int, tokens) -> int:
        """Bytes kept of so many images, at so many blocks x steps, of tokens like these (B, N, D)."""
        value = 2 if tokens.dtype == torch.float32 and not tokens.is_cuda else tokens.element_size()
        return images * sites * self.k * (8 + value * tokens.shape[1])

    def host(self) -> "Record":
        """Move all that was recorded to the host's memory, and give the record back."""
        for parts in self.sites.values():
            parts.update({n: tuple(tensor.cpu() for tensor in part) for n, part in parts.items()})
        return self

    @property
    def steps(self) -> list[int]:
        """The recorded steps, in order."""
        return sorted(self.timesteps)

    @property
    def layers(self) -> list[int]:
        """The recorded layers, in order."""
        return sorted(self.names)

    def save(self, path) -> None:
        """Write the record as safetensors: ids.STEP.LAYER (image, K) and values.STEP.LAYER (image, N, K).

        Grid, branch, timesteps and layer names stand in the header. Raises RuntimeError for an empty record.
        """
        if not self.sites:
            raise RuntimeError("the Record has seen no tokens: generate inside `with mu.attach(pipe, record):` first")
        tensors = {}
        for step, layer in sorted(self.sites):
            for name, tensor in zip(("ids", "values"), self[step, layer], strict=True):
                tensors[f"{name}.{step}.{layer}"] = tensor.cpu().contiguous()
        header = {"grid": self.grid, "branch": self.branch, "timesteps": self.timesteps, "names": self.names}
        with atomic_write(Path(path)) as beside:
            save_file(tensors, beside, {"record": json.dumps(header)})

    @classmethod
    def load(cls, path) -> "Record":
        """A record as `save` wrote it, on the CPU. Raises ValueError for a file that is not one."""
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("record", "null"))
            if header is None:
                raise ValueError(f"{path} is a safetensors file but no Record; make one with record.save(path)")
            keys = sorted(tuple(map(int, key.split(".")[1:])) for key in file.keys() if key.startswith("ids."))
            sites = {
                key: {0: tuple(file.get_tensor(f"{name}.{key[0]}.{key[1]}") for name in ("ids", "values"))}
                for key in keys
            }
        record = cls(k=sites[keys[0]][0][0].shape[1])
        record.sites, record.grid, record.branch = sites, tuple(header["grid"]), header["branch"]
        record.timesteps = {int(step): value for step, value in header["timesteps"].items()}
        record.names = {int(layer): name for layer, name in header["names"].items()}
        return record
