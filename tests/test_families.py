"""Every family seen correctly: tiny random-weight pipelines, and oracles that know nothing of the table."""

import pytest
import torch

import massact_utils as mu
import tiny
import tiny_more
import tiny_video
from massact_utils.models.families import transformers_of
from tiny_more import auraflow, bria, dit, hunyuandit

RECIPES = tiny.RECIPES + tiny_more.RECIPES + tiny_video.RECIPES
WHOLE = (tiny.klein_cfg, tiny.klein_kv, tiny.flux, tiny.sd3_skip, tiny.qwen_edit, tiny.sana, tiny.z_image)
WHOLE += (tiny_video.wan,)


@pytest.fixture(scope="module", params=WHOLE, ids=lambda recipe: recipe.__name__)
def recipe(request):
    """Two streams and one, references before and behind, all orders of branches, ragged streams, video."""
    return request.param()


@pytest.fixture(scope="module")
def plain(recipe):
    """What the untouched pipeline makes."""
    return tiny.run(recipe)


class Watch:
    edits = False

    def __init__(self, keep=False):
        self.sites, self.tokens, self.keep = [], [], keep

    def __call__(self, tokens, site):
        self.sites.append(site)
        self.tokens.append(tokens.clone() if self.keep else tuple(tokens.shape))


@pytest.fixture(scope="module", params=RECIPES, ids=lambda recipe: recipe.__name__)
def watched(request):
    """Every recipe, what a reader of all branches saw of its run, and the arguments of the transformer's first call."""
    recipe, calls = request.param(), []

    def keep(module, args, kwargs):
        calls.append((args, kwargs))

    hook = recipe.pipe.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    with mu.attach(recipe.pipe, Watch(), branch="both") as watch:
        tiny.run(recipe)
    hook.remove()
    return recipe, watch, calls[0]


def test_identity_is_bit_exact(recipe, plain):
    with mu.attach(recipe.pipe, lambda tokens, site: tokens.clone()):
        assert torch.equal(tiny.run(recipe), plain)
    assert torch.equal(tiny.run(recipe), plain)


def test_steps_branches_and_grid_come_out_as_the_schedule_says(watched):
    recipe, watch, _ = watched
    layers = [block.index for block in mu.blocks(recipe.pipe)]
    order = list({(s.step, s.branch): None for s in watch.sites})
    steps, branches = recipe.steps, recipe.branches
    assert set(order) == {(s, b) for s in steps for b in branches}
    assert [step for step, _ in order] == sorted(step for step, _ in order)
    assert order[: len(branches)] == [(steps[0], branch) for branch in branches]
    for at in order:
        seen = [s.layer for s in watch.sites if (s.step, s.branch) == at]
        assert seen == layers if at[1] != "extra" else set(seen) < set(layers)
    assert {s.grid for s in watch.sites} == {recipe.grid} and {s.rows for s in watch.sites} == {range(recipe.batch)}
    n = torch.Size(recipe.grid).numel()
    assert {shape[:2] for shape in watch.tokens} == {(recipe.batch, n)}
    assert {shape[2] for shape in watch.tokens} == {block.width for block in mu.blocks(recipe.pipe)}
    schedule = recipe.pipe.scheduler.timesteps.tolist()
    assert {(s.step, s.timestep) for s in watch.sites} == {(step, schedule[step]) for step in steps}


def test_a_second_generation_repeats_the_first_under_another_number(recipe):
    with mu.attach(recipe.pipe, Watch(), layers=0, branch="both") as watch:
        tiny.run(recipe)
        tiny.run(recipe)
    first, second = ([s for s in watch.sites if s.generation == g] for g in sorted({s.generation for s in watch.sites}))
    assert first and [(s.step, s.branch) for s in first] == [(s.step, s.branch) for s in second]


def test_only_the_conditional_branch_reads_the_prompt(recipe):
    def tokens(prompts):
        with mu.attach(recipe.pipe, Watch(keep=True), branch="both", layers=-1, steps=recipe.steps[0]) as watch:
            tiny.run(recipe, prompts=prompts)
        return {site.branch: x for site, x in zip(watch.sites, watch.tokens, strict=True)}

    one, other = tokens((0, 1)), tokens((7, 1))
    assert set(one) == set(recipe.branches)
    for branch in recipe.branches:
        assert torch.equal(one[branch][0], other[branch][0]) == (branch == "uncond"), branch
        assert torch.allclose(one[branch][1:], other[branch][1:], atol=1e-5), branch  # the second prompt was kept


def test_a_conditional_edit_at_the_last_step_changes_the_image(recipe, plain):
    with mu.attach(recipe.pipe, lambda x, site: x.flip(-1), layers=-1, steps=-1, branch="cond"):
        assert not torch.equal(tiny.run(recipe), plain)


def test_output_depends_at_the_last_block_on_exactly_the_row_claimed(watched):
    """The gradient oracle: d(output at one target position) / d(target tokens of the last block)."""
    recipe, _, (args, kwargs) = watched
    kept = []

    def leaf(tokens, site):
        kept.append(tokens.detach().requires_grad_())
        return kept[-1]

    transformer = recipe.pipe.transformer
    with mu.attach(transformer, leaf, layers=-1, branch="both"), torch.enable_grad():
        output = transformer(*args, **kwargs)
    output = output[0]
    n = torch.Size(recipe.grid).numel()
    for at in (0, 8, n - 1):
        (gradient,) = torch.autograd.grad(position(recipe, output, at, n).sum(), kept[0], retain_graph=True)
        assert gradient[0].abs().amax(-1).nonzero().flatten().tolist() == [at]
        assert not gradient[1:].any()


def position(recipe, output, at, n):
    """The model's output for the first row's target position `at` (raster): from a map, or from packed tokens."""
    row = output[0]
    if row.ndim == 2 or recipe.output in ("n...", "...n"):  # the packed target, before references or after text
        return row[at + (len(row) - n if recipe.output == "...n" else 0)]
    row = row.movedim({"c...": 0, "fchw": 1, "...c": -1}[recipe.output], 0)
    index, cell = [], []
    for side, tiles in zip(reversed(row.shape[-len(recipe.grid) :]), reversed(recipe.grid), strict=True):
        index.append(at % tiles)
        cell.append(side // tiles)
        at //= tiles
    where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(reversed(index), reversed(cell), strict=True))
    return row[(..., *where)]


def test_a_planted_massive_channel_is_found_in_its_layer_and_not_before(recipe):
    planted, listed = [5, 19], mu.blocks(recipe.pipe)
    at = len(listed) // 2
    models = [model for model, _ in transformers_of(recipe.pipe)]
    undo = [tiny.plant(model.get_submodule(listed[at].name), planted, 50.0) for model in models]
    try:
        with mu.attach(recipe.pipe, mu.ChannelStats(), steps=recipe.steps[0]) as stats:
            tiny.run(recipe)
    finally:
        for restore in undo:
            restore()
    scores = stats.dataset().mean_abs.mean(["image", "branch"])
    top = mu.select_channels(scores, k=2)
    found = {
        layer: {tuple(sorted(ids)) for ids in top.sel(layer=layer).values.tolist()} for layer in range(len(listed))
    }
    assert found[at] == {(5, 19)}
    assert all((5, 19) not in found[layer] for layer in range(at))
    assert float(scores.sel(layer=at, channel=planted).min()) > 25


def test_a_probe_may_write_into_its_tokens_and_return_them(recipe):
    """Wherever a family's tokens are a view, and wherever they are a copy."""

    def in_place(tokens, site):
        tokens[:, ::2] *= 1.5
        return tokens

    def anew(tokens, site):
        return in_place(tokens.clone(), site)

    made = []
    for probe in (in_place, anew, lambda tokens, site: None):
        with mu.attach(recipe.pipe, probe, layers=0, steps=recipe.steps[0]):
            made.append(tiny.run(recipe))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_tokens_changed_in_place_and_not_returned_are_an_error(recipe):
    def forgetful(tokens, site):
        tokens.zero_()

    with pytest.raises(RuntimeError, match="in place and returned None; return them"):
        with mu.attach(recipe.pipe, forgetful):
            tiny.run(recipe)


def test_the_text_stream_is_the_prompts_and_reaches_the_image(recipe, plain):
    """Of dual-stream blocks: as many tokens as the prompt has, which follow the prompt and change the image."""
    dual = [block.index for block in mu.blocks(recipe.pipe) if block.kind == "dual"]
    if not dual:
        with pytest.raises(ValueError, match="no text stream"), mu.attach(recipe.pipe, Watch(), stream="text"):
            pass
        return
    with mu.attach(recipe.pipe, lambda tokens, site: tokens.clone(), stream="text"):
        assert torch.equal(tiny.run(recipe), plain)
    seen = []
    for prompts in ((0, 1), (7, 1)):
        with mu.attach(recipe.pipe, Watch(keep=True), stream="text", steps=recipe.steps[0], branch="cond") as watch:
            tiny.run(recipe, prompts=prompts)
        assert {s.layer for s in watch.sites} >= set(dual[:-1]) and {s.layer for s in watch.sites} <= set(dual)
        assert {s.grid for s in watch.sites} == {(1, recipe.text)} and {s.branch for s in watch.sites} == {"cond"}
        assert {tuple(x.shape[:2]) for x in watch.tokens} == {(recipe.batch, recipe.text)}
        seen.append(watch.tokens[0])
    assert not torch.equal(seen[0][0], seen[1][0]) and torch.allclose(seen[0][1:], seen[1][1:], atol=1e-5)
    with mu.attach(recipe.pipe, lambda x, site: x.flip(-1), stream="text", layers=dual[0], branch="cond"):
        assert not torch.equal(tiny.run(recipe), plain)


# ---------------------------------------------------------------- what differs between families, one by one


def test_several_images_of_a_prompt_are_rows_of_one_batch():
    for recipe in (tiny.klein_cfg(), tiny.pixart()):
        with mu.attach(recipe.pipe, Watch(keep=True), layers=0, steps=0) as watch:
            tiny.run(recipe)
            recipe = recipe._replace(call=lambda p, call=recipe.call: call(p[:1]) | {"num_images_per_prompt": 2})
            tiny.run(recipe)
        assert [s.rows for s in watch.sites] == [range(2), range(2)] and {s.branch for s in watch.sites} == {"cond"}
        assert torch.allclose(watch.tokens[0][0], watch.tokens[1][0], atol=1e-5)  # the first row is the same image


def test_without_guidance_a_doubled_family_has_one_branch():
    recipe = tiny.sd3()
    with mu.attach(recipe.pipe, Watch(), layers=0, branch="both") as watch:
        tiny.run(recipe, guidance_scale=1.0)
        tiny.run(recipe, guidance_scale=1.0, seeds=(3, 3))  # rows with the same noise are still two images
    assert {s.branch for s in watch.sites} == {"cond"} and {s.rows for s in watch.sites} == {range(2)}


GUIDING = (tiny.pixart, auraflow, dit, tiny.sd3, tiny.sana, hunyuandit, tiny.z_image, bria)


@pytest.mark.parametrize("make", GUIDING, ids=lambda make: make.__name__)
def test_rows_with_the_same_noise_are_rows_and_not_branches(make):
    """Two prompts, one seed, no guidance: two images. With guidance, twice as many rows: both branches."""
    recipe = make()
    assert recipe.batch == 2
    for guidance, branches in ((0.0 if make is tiny.z_image else 1.0, {"cond"}), (3.0, {"cond", "uncond"})):
        with mu.attach(recipe.pipe, Watch(), layers=0, branch="both") as watch:
            tiny.run(recipe, guidance_scale=guidance, seeds=(3, 3))
        assert {s.branch for s in watch.sites} == branches and {s.rows for s in watch.sites} == {range(2)}


def test_a_step_before_image_to_image_begins_is_refused():
    recipe = tiny.flux_img2img()
    with pytest.raises(ValueError, match="step 1 is not run: this generation begins at step 2"):
        with mu.attach(recipe.pipe, Watch(), steps=[1, 2]):
            tiny.run(recipe)


def test_the_second_transformer_of_wan_has_the_same_layers():
    recipe = tiny_video.wan22()
    called = []
    for name in ("transformer", "transformer_2"):
        getattr(recipe.pipe, name).register_forward_pre_hook(lambda module, args, name=name: called.append(name))
    with mu.attach(recipe.pipe, Watch(), layers=1) as watch:
        tiny.run(recipe, num_inference_steps=4)
    assert set(called) == {"transformer", "transformer_2"}
    assert [(s.step, s.layer) for s in watch.sites] == [(step, 1) for step in range(4)]


def test_masks_of_a_video_have_its_frames():
    recipe = tiny_video.wan()
    with mu.attach(recipe.pipe, mu.Record(k=3), steps=0) as record:
        tiny.run(recipe)
    masks, heat = mu.token_masks(record, layer=-1)
    assert masks.shape == heat.shape == (2, 2, 4, 6)


def test_text_stream_leaves_registers_out():
    recipe = auraflow()
    with mu.attach(recipe.pipe, Watch(), stream="text") as watch:
        tiny.run(recipe)
    assert {s.name for s in watch.sites} == {"joint_transformer_blocks.0", "joint_transformer_blocks.1"}
    assert {shape for shape in watch.tokens} == {(2, 5, 32)}  # as many as the prompt has, without the eight registers
    with pytest.raises(ValueError, match="no text stream"), mu.attach(tiny.sana().pipe, Watch(), stream="text"):
        pass


@pytest.mark.parametrize("branches", [("cond",), ("cond", "uncond"), ("cond", "uncond", "extra")])
def test_omnigen_shows_the_tail_of_its_rows(branches):
    """Its pipeline needs torchvision; the loop is one's own, and says what its rows are."""
    rows, length = 3 * len(branches), 5 + 1 + 24
    ids, mask = torch.ones(rows, 5, dtype=torch.long), torch.ones(rows, length, length)
    model, latents, at = tiny_video.omnigen(), torch.randn(rows, 4, 8, 12), torch.full((rows,), 0.5)
    with mu.attach(model, Watch(), branch="both", rows=branches) as watch, torch.no_grad():
        model(latents, at, ids, [], {}, mask, torch.arange(length).repeat(rows, 1))
    assert {(s.branch, s.grid, s.rows) for s in watch.sites} == {(name, (4, 6), range(3)) for name in branches}


def test_generate_takes_class_labels_where_a_pipeline_has_no_prompts():
    pipe = dit().pipe
    with mu.attach(pipe, Watch(), layers=0, branch="both") as watch:
        images = mu.generate(pipe, [3, 7], seeds=[1, 2], num_inference_steps=2)
    assert [image.size for image in images] == [(64, 64)] * 2
    assert [(s.step, s.branch) for s in watch.sites] == [(s, b) for s in range(2) for b in ("cond", "uncond")]
    with pytest.raises(TypeError, match="'a cat' is not a class label"):
        mu.generate(pipe, "a cat")
