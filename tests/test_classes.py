"""Every transformer class of diffusers: in the table, or refused with a reason; the classes without a tiny pipeline one
by one.
"""

import math

import pytest
import torch

import massact_utils as mu
import tiny
import tiny_bare
import tiny_more
from massact_utils.models.families import FAMILIES, block_modules


def test_every_row_has_a_tiny_model():
    """A row that no test runs is a claim."""
    tried = {type(make().pipe.transformer).__name__ for make in tiny.RECIPES + tiny_more.RECIPES}
    tried |= {type(make().model).__name__ for make in tiny_bare.MODELS} | {"OmniGenTransformer2DModel"}
    assert tried == set(FAMILIES)


# ---------------------------------------------------------------- bare transformers


@pytest.fixture(scope="module", params=tiny_bare.MODELS, ids=lambda make: make.__name__)
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
