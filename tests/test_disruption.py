"""What Disrupt promises: only the named channels of the named rows change, by the stated dose."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import massact_utils as mu
import tiny
from massact_utils.probes.disrupt import Disrupt
from massact_utils.probes.doses import matched_channels, removed
from massact_utils.probes.levels import Levels


class Here:
    layer, step, branch, grid = 1, 0, "cond", (5, 3)


WIDTH, TOKENS = 8, 15


@pytest.fixture
def tokens():
    return torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


def levels_of_a_data_set(level="mean"):
    """Levels of two branches, steps and layers, all different."""
    values = np.arange(2 * 2 * 2 * WIDTH, dtype=np.float32).reshape(2, 2, 2, WIDTH) / 10
    coords = {"branch": ["cond", "uncond"], "step": [0, 1], "layer": [0, 1]}
    return xr.DataArray(values, coords, ("branch", "step", "layer", "channel"), attrs={"level": level})


def at_here(levels):
    return levels.sel(branch="cond", step=0, layer=1).values


LEVELS = {  # of one channel of one image, (N,) -> a number, on 5 x 3 tokens
    "mean": np.mean,
    "median": lambda x: sorted(x)[TOKENS // 2],
    "border": lambda x: np.mean([x[3 * i + j] for i in range(5) for j in range(3) if i in (0, 4) or j in (0, 2)]),
}
TARGETS = {  # of a channel x (N,) with its level, and the data set's
    "zero": lambda x, own, given: 0 * x,
    "no pattern": lambda x, own, given: 0 * x + own,
    "no level": lambda x, own, given: x - own + given,
    "neither": lambda x, own, given: 0 * x + given,
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", TARGETS)
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_dose_moves_the_chosen_channels_and_no_other(tokens, mode, strength, level):
    levels = levels_of_a_data_set(level)
    edited = Disrupt([2, 5], mode=mode, strength=strength, level=level, levels=levels)(tokens, Here)
    wanted = tokens.numpy().copy()
    for row in range(3):
        for c in (2, 5):
            x = tokens[row, :, c].double().numpy()
            target = TARGETS[mode](x, LEVELS[level](x), at_here(levels)[c])
            wanted[row, :, c] = x + strength * (target - x)
    np.testing.assert_allclose(edited, wanted, rtol=1e-5, atol=1e-6)
    rest = [0, 1, 3, 4, 6, 7]
    assert torch.equal(edited[..., rest], tokens[..., rest])
    assert strength or torch.equal(edited, tokens)


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_a_token_keeps_its_norm_and_the_other_channels_their_direction(tokens, strength):
    ids, rest = [0, 3, 4], [1, 2, 5, 6, 7]
    edited = Disrupt(ids, mode="zero, norm restored", strength=strength)(tokens, Here)
    torch.testing.assert_close(edited.norm(dim=2), tokens.norm(dim=2))
    plain = Disrupt(ids, strength=strength)(tokens, Here)
    torch.testing.assert_close(torch.cosine_similarity(edited, plain, dim=2), torch.ones(3, TOKENS))
    assert not torch.equal(edited[..., rest], tokens[..., rest])
    assert strength < 1 or edited[..., ids].eq(0).all()
    assert Disrupt(range(WIDTH), mode="zero, norm restored")(tokens, Here).eq(0).all()  # nothing is left to scale


def test_shuffled_values_stay_in_their_image_and_channels_stay_together(tokens):
    ids = [1, 6, 7]
    edited = Disrupt(ids, mode="shuffled", seed=4)(tokens, Here)
    assert torch.equal(edited[..., [0, 2, 3, 4, 5]], tokens[..., [0, 2, 3, 4, 5]])
    for row in range(3):
        before, after = (sorted(map(tuple, x[row][:, ids].tolist())) for x in (tokens, edited))
        assert before == after
        assert not torch.equal(edited[row], tokens[row])


def site_at(**where):
    return SimpleNamespace(**dict(layer=1, step=0, branch="cond", grid=(5, 3)) | where)


def test_a_shuffle_depends_on_its_seed_and_site_and_on_no_other_row(tokens):
    def shuffled(x, seed, where=Here, **more):
        return Disrupt([1, 6], mode="shuffled", seed=seed)(x, where)

    alone = shuffled(tokens[1:2], 4)[0]
    arms = Disrupt(arms=[[0], [6, 1], [1, 6]], mode=["zero", "shuffled", "shuffled"], seed=[0, 4, 5])(tokens, Here)
    assert torch.equal(shuffled(tokens, 4)[1], alone) and torch.equal(shuffled(tokens.flip(0), 4)[1], alone)
    assert torch.equal(arms[1], alone) and torch.equal(arms[2], shuffled(tokens, 5)[2])
    assert torch.equal(shuffled(tokens, 4, site_at(branch="uncond"))[1], alone)  # guidance takes a difference
    for other in (
        shuffled(tokens, 5)[1],
        shuffled(tokens, 4, site_at(layer=2))[1],
        shuffled(tokens, 4, site_at(step=1))[1],
    ):
        assert not torch.equal(other, alone)


def test_a_donor_gives_its_values_and_is_left_alone(tokens):
    edited = Disrupt(arms=[[2, 5], None, [0]], mode="donor", donors=1, strength=[1.0, 1.0, 0.25])(tokens, Here)
    wanted = tokens.clone()
    wanted[0, :, [2, 5]] = tokens[1, :, [2, 5]]
    wanted[2, :, 0] = 0.75 * tokens[2, :, 0] + 0.25 * tokens[1, :, 0]
    assert torch.equal(edited[:2], wanted[:2])
    torch.testing.assert_close(edited, wanted)


def test_every_mode_can_be_an_arm_of_one_batch():
    """A row with its own set, mode and dose comes out as it does in a batch of its own."""
    modes = [*TARGETS, "zero, norm restored", "shuffled", "donor"]
    tokens = torch.randn(8, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    sets, doses = [[0], [1, 7], [2, 3, 4], [5], [6, 0], [1, 2], [3, 4, 5, 6]], [1, 0.5, 1, 0.25, 1, 0.5, 1]
    more = dict(levels=levels_of_a_data_set(), seed=3)
    probe = Disrupt(arms=[None, *sets], mode=["zero", *modes], strength=[1, *doses], donors=[None] * 7 + [0], **more)
    edited = probe(tokens, Here)
    assert torch.equal(edited[0], tokens[0])
    for row, (mode, ids, dose) in enumerate(zip(modes, sets, doses, strict=True), 1):
        arms = dict(arms=[None, ids], mode=["zero", mode], strength=[0, dose], donors=[None, 0])
        alone = Disrupt(**arms, **more)(tokens[[0, row]], Here)
        torch.testing.assert_close(edited[row], alone[1])  # means may be summed in another order
        assert not torch.equal(edited[row], tokens[row])
    np.testing.assert_allclose(
        probe.changed(), (edited - tokens).square().sum((1, 2)) / tokens.square().sum((1, 2)), rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_levels_of_half_precision_tokens_are_exact_but_for_one_rounding(dtype):
    tokens = (300 + torch.randn(2, 4096, 3, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact, given = (
        tokens.double().mean(1, keepdim=True),
        xr.DataArray(np.full((1, 1, 3), 7.0), {"step": [0], "layer": [1]}, ("step", "layer", "channel")),
    )
    smooth = Disrupt([1], mode="no pattern")(tokens, Here)
    assert smooth.dtype == dtype and torch.equal(smooth[..., 1], exact[..., 1].to(dtype).expand(2, 4096))
    lower = Disrupt([1], mode="no level", levels=given)(tokens, Here)[..., 1].double()
    wanted = tokens[..., 1].double() - exact[..., 1] + 7
    torch.testing.assert_close(lower, wanted, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_every_arm_has_its_own_row(tokens):
    edited = Disrupt(arms=[[0], None, [1, 7]])(tokens, Here)
    for row, ids in enumerate([[0], [], [1, 7]]):
        assert torch.equal(edited[row], Disrupt(ids)(tokens[row : row + 1], Here)[0] if ids else tokens[row])


def test_channels_may_differ_between_layers_and_steps(tokens):
    ids = xr.DataArray([[[0], [3]], [[5], [6]]], {"step": [0, 1], "layer": [0, 1]}, ("step", "layer", "rank"))
    changed = (Disrupt(ids)(tokens, Here) != tokens).any(dim=(0, 1))
    assert changed.nonzero().flatten().tolist() == [3]


def test_every_arm_has_its_own_dose_and_place(tokens):
    where = xr.DataArray([[0.0, 1.0]], {"step": [0], "layer": [0, 1]}, ("step", "layer"))
    edited = Disrupt(arms=[[0], [0], [0]], strength=[0.25, where, 1 - where])(tokens, Here)  # layer 1, step 0
    torch.testing.assert_close(edited[:, :, 0], tokens[:, :, 0] * torch.tensor([[0.75], [0], [1]]))
    assert torch.equal(edited[..., 1:], tokens[..., 1:])


def test_a_set_may_hold_a_dose_for_each_channel(tokens):
    doses = xr.DataArray([0, 1, 0, 0.25, 0, 0, 0, 0], dims="channel")
    edited = Disrupt(doses, strength=0.5)(tokens, Here)
    torch.testing.assert_close(edited, tokens * torch.tensor([1, 0.5, 1, 0.875, 1, 1, 1, 1]))


@pytest.mark.parametrize("mode", ["zero", "no pattern", "shuffled", "zero, norm restored"])
def test_the_share_of_the_squared_norm_that_was_changed(tokens, mode):
    probe = Disrupt(arms=[[0, 3], None, [7]], mode=mode, strength=0.5)
    shares = []
    for scale in (1, 3):
        edited = probe(scale * tokens, Here)
        shares.append(((edited - scale * tokens) ** 2).sum((1, 2)) / (scale * tokens).square().sum((1, 2)))
    np.testing.assert_allclose(probe.changed(), torch.stack(shares).mean(0), rtol=1e-5)
    with pytest.raises(RuntimeError, match="has seen no tokens"):
        Disrupt([0]).changed()


def test_matched_channels_remove_the_same_squared_norm():
    rng = np.random.default_rng(0)
    power = xr.DataArray(rng.exponential(1, (3, 40)), dims=("layer", "channel"))
    power[:, 5] += 8  # massive, but less than half
    top = mu.select_channels(power, k=2)
    doses = matched_channels(power, top, seed=1)
    assert doses.dims == power.dims and doses.min() >= 0 and doses.max() <= 1
    assert float(doses.sel(channel=top).sum()) == 0
    assert ((doses > 0) & (doses < 1)).sum("channel").max() <= 1  # whole channels, and the part of one
    np.testing.assert_allclose(removed(power, doses), removed(power, top))
    np.testing.assert_allclose(removed(power, top), power.sel(channel=top).sum("rank") / power.sum("channel"))
    again, other = (matched_channels(power, top, seed=s) for s in (1, 2))
    assert doses.equals(again) and not doses.equals(other)
    assert not doses[0].equals(doses[1])


def test_a_set_with_most_of_the_norm_is_matched_as_far_as_it_can_be():
    power = xr.DataArray([1.0, 1.0, 8.0, 0.0], dims="channel")
    doses = matched_channels(power, xr.DataArray([2], dims="rank"))
    assert doses.values[:3].tolist() == [1, 1, 0]
    assert float(removed(power, doses)) == pytest.approx(0.2)


def test_matched_channels_are_drawn_evenly():
    power = xr.DataArray(np.r_[4.0, np.ones(9)], dims="channel")
    drawn = sum(matched_channels(power, xr.DataArray([0], dims="rank"), seed=s) for s in range(300)) / 300
    np.testing.assert_allclose(drawn[1:], 4 / 9, atol=0.12)  # 4 of 9; standard error 0.03


@pytest.mark.parametrize("recipe", [tiny.sd3, tiny.pixart, tiny.flux_cfg], ids=lambda recipe: recipe.__name__)
def test_arms_are_rows_of_the_batch_whether_or_not_guidance_doubles_it(recipe):
    """The untouched row stays as it was; an arm's row is what the arm gives when every row has it."""
    recipe, same = recipe()._replace(batch=3), dict(prompts=(1, 1, 1), seeds=(3, 3, 3))
    plain, arms = tiny.run(recipe, **same), [None, [0, 5], [1, 2, 3]]
    with mu.attach(recipe.pipe, Disrupt(arms=arms)) as disrupt:
        together = tiny.run(recipe, **same)
    assert torch.equal(together[0], plain[0]) and disrupt.changed()[0] == 0
    for row, ids in [(1, arms[1]), (2, arms[2])]:
        with mu.attach(recipe.pipe, Disrupt(ids)):
            alone = tiny.run(recipe, **same)
        assert torch.equal(together[row], alone[row]) and not torch.equal(together[row], plain[row])


def test_disruption_in_a_pipeline_leaves_the_untouched_arm_alone():
    pipe = tiny.klein()
    prompts = ["a cat"] * 3
    plain = mu.generate(pipe, prompts, seeds=[0, 0, 0], **tiny.KLEIN)
    with mu.attach(pipe, Disrupt(arms=[None, list(range(8)), [3]])):
        images = mu.generate(pipe, prompts, seeds=[0, 0, 0], **tiny.KLEIN)
    same = [np.array_equal(a, b) for a, b in zip(plain, images, strict=True)]
    assert same == [True, False, False]


@pytest.mark.parametrize("recipe", [tiny.sd3, tiny.pixart, tiny.flux_cfg], ids=lambda recipe: recipe.__name__)
def test_each_branch_of_guidance_gets_its_own_level(recipe):
    """Levels against means over tokens kept by hand, of two generations; then what an edit leaves behind."""
    recipe = recipe()
    levels, before, after = Levels(), Watch(), Watch()
    with mu.attach(recipe.pipe, levels, before, branch="both"):
        tiny.run(recipe)
        tiny.run(recipe, prompts=(5,), seeds=(6,))
    table = levels.table()
    assert set(table.branch.values) == {"cond", "uncond"} and not table.isnull().any()
    for (branch, step, layer), kept in before.tokens.items():
        wanted = np.concatenate([x.double().numpy() for x in kept]).mean((0, 1))
        np.testing.assert_allclose(table.sel(branch=branch, step=step, layer=layer), wanted, rtol=1e-4, atol=1e-5)
    edit = Disrupt([0, 3], mode="neither", levels=table)
    with mu.attach(recipe.pipe, edit), mu.attach(recipe.pipe, after, branch="both"):
        tiny.run(recipe, prompts=(7, 8), seeds=(1, 2))
    assert after.tokens.keys() == before.tokens.keys()
    for (branch, step, layer), (tokens,) in after.tokens.items():
        wanted = table.sel(branch=branch, step=step, layer=layer).values[[0, 3]]
        np.testing.assert_array_equal(tokens[..., [0, 3]], np.broadcast_to(wanted, (*tokens.shape[:2], 2)))
    assert not np.allclose(table.sel(branch="cond"), table.sel(branch="uncond"))


@pytest.mark.parametrize("mode", ["shuffled", "donor"])
def test_a_row_is_edited_alike_whoever_else_is_in_the_batch(mode):
    """Under guidance: the second row of two batches that share their first two, where the first is the donor."""
    recipe = tiny.flux_cfg()._replace(batch=3)
    plain, made = tiny.run(recipe, prompts=(1, 2, 5), seeds=(3, 4, 5)), []
    for prompt, seed in ((5, 5), (6, 9)):
        with mu.attach(recipe.pipe, Disrupt(arms=[None, [0, 3], [1, 2]], mode=mode, donors=0, seed=8)):
            made.append(tiny.run(recipe, prompts=(1, 2, prompt), seeds=(3, 4, seed)))
    assert torch.equal(made[0][:2], made[1][:2]) and not torch.equal(made[0][2], made[1][2])
    assert torch.equal(made[0][0], plain[0]) and not torch.equal(made[0][1], plain[1])


class Watch:
    """Keeps the tokens of every site, generation by generation."""

    edits = False

    def __init__(self):
        self.tokens = {}

    def __call__(self, tokens, site):
        self.tokens.setdefault((site.branch, site.step, site.layer), []).append(tokens.clone())


def test_levels_of_one_branch_are_refused_in_the_other():
    recipe = tiny.flux_cfg()
    with mu.attach(recipe.pipe, Levels()) as levels, mu.attach(recipe.pipe, mu.ChannelStats()) as stats:
        tiny.run(recipe)
    for table in (levels.table(), levels.table().sel(branch="cond"), stats.dataset()["mean"].mean("image")):
        edit = Disrupt([0], mode="no level", levels=table)
        with mu.attach(recipe.pipe, edit, branch="cond"):
            tiny.run(recipe)
        with mu.attach(recipe.pipe, edit), pytest.raises(ValueError, match=r"no branch uncond; .*branch='both'"):
            tiny.run(recipe)


def test_levels_that_were_not_measured_are_refused(tokens):
    with pytest.raises(RuntimeError, match="seen no tokens"):
        Levels().table()
    measured = Levels()
    measured(tokens, site_at(timestep=1000.0))
    with pytest.raises(ValueError, match="1000 and is now at 900; take other Levels"):
        measured(tokens, site_at(timestep=900.0))
    levels = levels_of_a_data_set()
    levels[:, :, 1] = np.nan
    with pytest.raises(ValueError, match="8 of them nan"):
        Disrupt([0], mode="neither", levels=levels)(tokens, Here)
    with pytest.raises(ValueError, match=r"no step 0; they name \[1\]"):
        Disrupt([0], mode="neither", levels=levels.sel(step=[1]))(tokens, Here)


SOME = levels_of_a_data_set()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"channels": [1], "mode": "none"}, "'none'.*'zero', .*'no pattern'"),
        ({"channels": [1], "level": "mode"}, "'mode' is unknown; allowed: mean, median, border"),
        ({"channels": [1], "mode": "no level"}, r"'no level' needs the data set's level.*levels.table\(\)"),
        ({"channels": [1], "mode": "neither", "levels": SOME.expand_dims(image=2)}, "averaged over images"),
        ({"channels": [1], "mode": "neither", "levels": SOME, "level": "median"}, "'mean'.*level='median'"),
        ({"channels": [1], "mode": "donor", "donors": 0}, "arm 0 cannot take values from row 0"),
        ({"arms": [[1], None], "mode": "donor"}, "from row None; give in donors="),
        ({"arms": [[1], [2]], "mode": ["donor", "zero"], "donors": 1}, "from row 1"),
        ({"arms": [[1], None], "mode": "donor", "donors": 2}, "from row 2"),
        ({"arms": [[1], None], "mode": ["zero"]}, "1 modes for 2 sets"),
        ({"channels": [1], "mode": "shuffled", "seed": -1}, "seed -1"),
        ({"channels": [1], "strength": 1.5}, "1.5"),
        ({"channels": [1], "strength": float("nan")}, "nan"),
        ({"channels": [1], "strength": xr.DataArray([1.0], dims="rank")}, "step and layer; got .'rank'"),
        ({"channels": xr.DataArray([0.5, -1.0], dims="channel")}, "no dose from 0 to 1"),
        ({"channels": xr.DataArray([[1]], dims=("image", "rank"))}, "image"),
        ({"arms": [[1], [2]], "strength": [1.0]}, "1 strengths for 2 sets"),
        ({}, "either channels"),
        ({"channels": [1], "arms": [[1]]}, "either channels"),
        ({"channels": []}, "at least one"),
    ],
)
def test_bad_arguments_are_errors_before_any_work(arguments, named):
    with pytest.raises(ValueError, match=named):
        Disrupt(**arguments)


def test_rows_channels_and_layers_that_do_not_fit(tokens):
    with pytest.raises(ValueError, match="3 rows in the batch for 2 arms"):
        Disrupt(arms=[[0], [1]])(tokens, Here)
    with pytest.raises(ValueError, match="channel 8 does not exist; there are 8"):
        Disrupt([8])(tokens, Here)
    with pytest.raises(ValueError, match=r"no layer 1; they name \[0\]"):
        Disrupt(xr.DataArray([[0]], {"layer": [0]}, ("layer", "rank")))(tokens, Here)
    with pytest.raises(ValueError, match=r"no step 0; they name \[4\]"):
        Disrupt([0], strength=xr.DataArray([1.0], {"step": [4]}, ("step",)))(tokens, Here)
    with pytest.raises(ValueError, match="doses for 3 channels; there are 8"):
        Disrupt(xr.DataArray([1.0, 0, 0], dims="channel"))(tokens, Here)


class Generation:
    """A site of one generation."""

    def __init__(self, number):
        self.layer, self.step, self.generation = 0, 0, number


def test_changed_is_of_the_last_generation_whatever_its_batch():
    probe = Disrupt([0])
    probe(torch.ones(3, 5, 8), Generation(1))
    probe(torch.tensor([3.0, 4.0, 0, 0]).expand(2, 5, 4), Generation(2))
    np.testing.assert_allclose(probe.changed(), [9 / 25, 9 / 25], rtol=1e-6)
