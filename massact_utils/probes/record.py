"""Record: a few channels of every image token, kept site by site, saved and loaded as safetensors."""

import json
import os
from pathlib import Path

import torch
import xarray as xr
from safetensors import safe_open
from safetensors.torch import save_file


class Record:
    """A probe that reads: K channels of every image token, at every site it sees, kept on the tokens' device.

    `channels` is a DataArray (rank), (layer, rank) or (step, layer, rank) as from `select_channels`; None keeps each
    image's own top k by mean absolute activation over its tokens, the selection of arXiv 2605.13974. Values are kept in
    the tokens' dtype, float32 as float16. One branch to a record, else ValueError.

    `record[step, layer]` gives (ids, values): channel ids (image, K) and values (image, N, K), images in the order they
    were generated. Raises KeyError, naming what there is, for a site that was not visited.
    """

    edits = False

    def __init__(self, channels: xr.DataArray | None = None, k: int = 12):
        if channels is None and k < 1:
            raise ValueError(f"k = {k} channels cannot be kept; allowed: 1 or more")
        self.channels, self.k = channels, k
        self.sites = {}  # (generation, step, layer) -> ids (B K), values (B N K)
        self.timesteps, self.names = {}, {}
        self.grid = self.branch = None
        self.clusters = {}  # what token_masks made of these tokens: no clustering is done twice

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
        values = values.half() if values.dtype == torch.float32 else values
        self.timesteps[site.step], self.names[site.layer] = site.timestep, site.name
        self.sites[site.generation, site.step, site.layer] = ids, values

    def __getitem__(self, key) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self.sites[site] for site in sorted(site for site in self.sites if site[1:] == key)]
        if not parts:
            raise KeyError(f"step, layer {key} was not recorded; steps {self.steps}, layers {self.layers} were")
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

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
        for step, layer in sorted({(step, layer) for _, step, layer in self.sites}):
            for name, tensor in zip(("ids", "values"), self[step, layer], strict=True):
                tensors[f"{name}.{step}.{layer}"] = tensor.cpu().contiguous()
        header = {"grid": self.grid, "branch": self.branch, "timesteps": self.timesteps, "names": self.names}
        path, unfinished = Path(path), Path(f"{path}.unfinished")
        save_file(tensors, unfinished, {"record": json.dumps(header)})
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path) -> "Record":
        """A record as `save` wrote it, on the CPU. Raises ValueError for a file that is not one."""
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("record", "null"))
            if header is None:
                raise ValueError(f"{path} is a safetensors file but no Record; make one with record.save(path)")
            keys = sorted(tuple(map(int, key.split(".")[1:])) for key in file.keys() if key.startswith("ids."))
            sites = {
                (0, *key): tuple(file.get_tensor(f"{name}.{key[0]}.{key[1]}") for name in ("ids", "values"))
                for key in keys
            }
        record = cls(k=next(iter(sites.values()))[0].shape[1])
        record.sites, record.grid, record.branch = sites, tuple(header["grid"]), header["branch"]
        record.timesteps = {int(step): value for step, value in header["timesteps"].items()}
        record.names = {int(layer): name for layer, name in header["names"].items()}
        return record
