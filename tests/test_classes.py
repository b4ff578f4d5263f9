"""Transformer classes: every row of the table has a tiny model; bare ones, wrapped ones, unknown ones."""

import math
import types

import diffusers
import pytest
import torch

import massact_utils as mu
import tiny
import tiny_more
import tiny_video
from massact_utils.models import families
from massact_utils.models.families import FAMILIES, block_modules


def test_every_row_has_a_tiny_model():
    """A row that no test runs is a claim."""
    tried = {type(make().pipe.transformer).__name__ for make in tiny.RECIPES + tiny_more.RECIPES + tiny_video.RECIPES}
    tried |= {type(make().model).__name__ for make in tiny_video.MODELS} | {"OmniGenTransformer2DModel"}
    assert tried == set(FAMILIES)


# ---------------------------------------------------------------- bare transformers


@pytest.fixture(scope="module", params=tiny_video.MODELS, ids=lambda make: make.__name__)
def bare(request):
    return request.param()


def output_of(bare):
    """What a transformer returns first (B, ...), rows in a list or not."""
    output = bare.model(**bare.call())[0]
    return torch.stack(output) if isinstance(output, list) else output


def place(bare, at, shape):
    """Where the raster position `at` of the target stands in latents, or an output, of this shape (B, ...)."""
    if bare.latents == "bnc":
        return (slice(None), shape[1] - math.prod(bare.grid) + at)
    f, h, w = (int(i) for i in torch.unravel_index(torch.tensor(at), bare.grid))
    rows, columns = (shape[bare.latents.index(axis)] // n for axis, n in zip("hw", bare.grid[1:], strict=True))
    cells = dict(f=bare.skip + f, h=slice(h * rows, (h + 1) * rows), w=slice(w * columns, (w + 1) * columns))
    return tuple(cells.get(axis, slice(None)) for axis in bare.latents)


def test_identity_is_bit_exact_and_leaves_no_hook(bare):
    sites = []

    def probe(tokens, site):
        sites.append((site, tokens.shape))
        return tokens.clone()

    with torch.no_grad():
        plain = output_of(bare)
        with mu.attach(bare.model, probe, branch="both"):
            assert torch.equal(output_of(bare), plain)
        assert torch.equal(output_of(bare), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in bare.model.modules())
    listed = mu.blocks(bare.model)
    assert [site.name for site, _ in sites] == [block.name for block in listed]
    assert {(site.grid, site.step, site.branch) for site, _ in sites} == {(bare.grid, 0, "cond")}
    batch = len(plain)
    assert [tuple(shape) for _, shape in sites] == [(batch, math.prod(bare.grid), block.width) for block in listed]


def test_output_depends_at_the_last_block_on_exactly_the_row_claimed(bare):
    kept = []

    def leaf(tokens, site):
        kept.append(tokens.detach().requires_grad_())
        return kept[-1]

    with mu.attach(bare.model, leaf, layers=-1, branch="both"), torch.enable_grad():
        output = output_of(bare)
    for at in (0, 8, math.prod(bare.grid) - 1):
        value = output[place(bare, at, output.shape)][0].sum()
        (gradient,) = torch.autograd.grad(value, kept[0], retain_graph=True)
        assert gradient[0].abs().amax(-1).nonzero().flatten().tolist() == [at]
        assert not gradient[1:].any()


def test_a_patch_of_the_latents_is_the_token_claimed_before_anything_mixes(bare):
    """The first block is made to pass its tokens on; a change of one patch then shows at one token."""
    block = block_modules(bare.model)[0][1]
    forward = block.forward

    def passing(*args, **kwargs):
        output = forward(*args, **kwargs)
        streams = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        passed = [
            next(x for x in streams if x.shape == y.shape) if isinstance(y, torch.Tensor) else y
            for y in ([output] if isinstance(output, torch.Tensor) else output)
        ]
        return passed[0] if isinstance(output, torch.Tensor) else type(output)(passed)

    def tokens(at=None):
        call, seen = bare.call(), []
        latents = call["hidden_states"]
        if at is not None and isinstance(latents, list):
            for row in latents:
                row[place(bare, at, (1, *row.shape))[1:]] += 1.0
        elif at is not None:
            latents[place(bare, at, latents.shape)] += 1.0
        with mu.attach(bare.model, lambda tokens, site: seen.append(tokens.clone()), layers=0), torch.no_grad():
            bare.model(**call)
        return seen[0]

    block.forward = passing
    try:
        plain = tokens()
        for at in (0, 8, math.prod(bare.grid) - 1):
            changed = (tokens(at) - plain).abs().amax((0, 2))
            assert changed.nonzero().flatten().tolist() == [at]
    finally:
        del block.forward


# ---------------------------------------------------------------- classes known by their base class, and wrapped ones


class Mine(diffusers.FluxTransformer2DModel):
    """A class of one's own, with a base class that is known."""


class Around(torch.nn.Module):
    """As PEFT wraps: PeftModel.base_model is a tuner, whose model is the model, and attributes are looked up inside."""

    def __init__(self, inside, name):
        super().__init__()
        self.name = name
        self._modules[name] = inside

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(vars(self)["name"]), name)

    def forward(self, *args, **kwargs):
        return getattr(self, self.name)(*args, **kwargs)


def wrapped(how):
    """A FLUX pipeline whose transformer is inside something else."""
    recipe = tiny.flux()
    if how == "subclass":
        recipe.pipe.transformer = tiny.flux_transformer(Mine, guidance_embeds=True, pooled_projection_dim=8)
    elif how == "PEFT":
        recipe.pipe.transformer = Around(Around(recipe.pipe.transformer, "model"), "base_model")
    else:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        model = torch.nn.parallel.DistributedDataParallel(recipe.pipe.transformer)
        model.config, model.dtype = recipe.pipe.transformer.config, recipe.pipe.transformer.dtype
        model.cache_context = recipe.pipe.transformer.cache_context
        object.__setattr__(recipe.pipe, "transformer", model)
    return recipe


@pytest.mark.parametrize("how", ["subclass", "PEFT", "DistributedDataParallel"])
def test_a_class_is_found_through_its_bases_and_wrappers(how):
    recipe, names = wrapped(how), []
    try:
        assert [block.kind for block in mu.blocks(recipe.pipe)] == ["dual"] * 2 + ["single"] * 2
        with mu.attach(recipe.pipe.transformer, lambda tokens, site: names.append((site.name, site.branch))):
            tiny.run(recipe)
        assert names[:4] == [(block.name, "cond") for block in mu.blocks(recipe.pipe)] and len(names) == 12
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class Unknown(torch.nn.Module):
    """Image tokens alone in one list of blocks."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
        self.inner_dim = 4
        self.config = types.SimpleNamespace(get=dict(patch_size=1).get, patch_size=1)

    def forward(self, hidden_states, timestep):
        x = hidden_states.flatten(2).mT
        for block in self.layers:
            x = block(x)
        return (x,)


def test_an_unknown_class_is_refused_with_the_row_to_add(monkeypatch):
    model, sites = Unknown(), []
    with pytest.raises(TypeError, match="Unknown is not a known Diffusion Transformer; add a row") as error:
        mu.blocks(model)
    row = next(line for line in str(error.value).splitlines() if "mu.FAMILIES" in line).strip()
    monkeypatch.setattr(families, "FAMILIES", dict(mu.FAMILIES))
    names = dict(BlockList=families.BlockList, Family=families.Family, by_shape=families.by_shape)
    exec(row, names | {"mu": types.SimpleNamespace(FAMILIES=families.FAMILIES)})
    with mu.attach(model, lambda tokens, site: sites.append((site.name, site.grid))):
        model(torch.randn(1, 4, 2, 3), torch.ones(1))
    assert sites == [("layers.0", (2, 3)), ("layers.1", (2, 3))]


def test_a_call_that_tells_no_grid_says_what_is_missing():
    model, n = tiny_video.ltx().pipe.transformer, 2 * 4 * 6
    call = dict(hidden_states=torch.randn(1, n, 4), encoder_hidden_states=torch.randn(1, 5, 16), timestep=torch.ones(1))
    call |= dict(encoder_attention_mask=torch.ones(1, 5))
    with pytest.raises(ValueError, match="called without 'num_frames', which tells its grid"):
        with mu.attach(model, lambda tokens, site: None):
            model(**call)
    axes = (
        torch.arange(2) * 8 / 25,
        torch.arange(4) * 32,
        torch.arange(6) * 32,
    )  # seconds and pixels
    places, grids = torch.stack(torch.meshgrid(*map(torch.Tensor.float, axes), indexing="ij")).flatten(1)[None], []
    with mu.attach(model, lambda tokens, site: grids.append(site.grid)), torch.no_grad():
        model(**call, video_coords=places)
    assert set(grids) == {(2, 4, 6)}
