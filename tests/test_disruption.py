"""What Disrupt promises: only the named channels of the named rows change, by the stated dose."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import massact_utils as mu
import tiny
from massact_utils.probes.arms import Arm
from massact_utils.probes.channels import matched_channels, removed
from massact_utils.ranges import EDITS

WIDTH, TOKENS = 8, 15


def site_at(**where):
    return SimpleNamespace(**dict(layer=1, step=0, branch="cond", grid=(5, 3), generation=0) | where)


HERE = site_at()
SUBJECT = np.zeros((5, 3), bool)
SUBJECT[1:4, 1:] = True
LEVELS = xr.DataArray(  # of a data set: all different
    np.arange(2 * 2 * 2 * WIDTH, dtype=np.float32).reshape(2, 2, 2, WIDTH) / 10,
    {"branch": ["cond", "uncond"], "step": [0, 1], "layer": [0, 1]},
    ("branch", "step", "layer", "channel"),
)


@pytest.fixture
def tokens():
    return torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


def arm(channels, edit="zero", dose=1.0, **more):
    """An Arm with all that any edit needs."""
    return Arm(channels, edit, dose, levels=LEVELS, mask=SUBJECT, **more)


def two_values(x):
    inside = SUBJECT.ravel()
    return np.array([np.mean([x[j] for j in range(TOKENS) if inside[j] == inside[i]]) for i in range(TOKENS)])


TARGETS = {  # of a channel x (N,) of one image, with the data set's level
    "zero": lambda x, average: 0 * x,
    "flat": lambda x, average: 0 * x + np.mean(x),
    "average level": lambda x, average: x - np.mean(x) + average,
    "flat at average level": lambda x, average: 0 * x + average,
    "two values": lambda x, average: two_values(x),
}


@pytest.mark.parametrize("edit", TARGETS)
@pytest.mark.parametrize("dose", [0.0, 0.3, 1.0])
def test_the_dose_moves_the_chosen_channels_and_no_other(tokens, edit, dose):
    edited = mu.Disrupt(arm([2, 5], edit, dose))(tokens, HERE)
    wanted, average = tokens.numpy().copy(), LEVELS.sel(branch="cond", step=0, layer=1).values
    for row in range(3):
        for c in (2, 5):
            x = tokens[row, :, c].double().numpy()
            wanted[row, :, c] = x + dose * (TARGETS[edit](x, average[c]) - x)
    np.testing.assert_allclose(edited, wanted, rtol=1e-5, atol=1e-6)
    rest = [0, 1, 3, 4, 6, 7]
    assert torch.equal(edited[..., rest], tokens[..., rest])
    assert dose or torch.equal(edited, tokens)


@pytest.mark.parametrize("offset", [(1, -1), (0, 1), (-4, 0)])
def test_two_values_are_put_elsewhere(tokens, offset):
    """The means are those of the subject and the ground where they are; token by token they stand at the moved mask."""
    edited = mu.Disrupt(arm([2, 5], "two values", offset=offset))(tokens, HERE).unflatten(1, (5, 3))
    values = tokens.unflatten(1, (5, 3))
    for row, channel in np.ndindex(3, 2):
        x = values[row, ..., [2, 5][channel]].numpy()
        for y, z in np.ndindex(5, 3):
            fro = y - offset[0], z - offset[1]
            inside = 0 <= fro[0] < 5 and 0 <= fro[1] < 3 and SUBJECT[fro]
            wanted = x[SUBJECT].mean() if inside else x[~SUBJECT].mean()
            assert edited[row, y, z, [2, 5][channel]].item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("dose", [0.4, 1.0])
def test_a_token_keeps_its_norm_and_the_other_channels_their_direction(tokens, dose):
    ids, rest = [0, 3, 4], [1, 2, 5, 6, 7]
    edited = mu.Disrupt(ids, "zero, same norm", dose)(tokens, HERE)
    torch.testing.assert_close(edited.norm(dim=2), tokens.norm(dim=2))
    plain = mu.Disrupt(ids, dose=dose)(tokens, HERE)
    torch.testing.assert_close(torch.cosine_similarity(edited, plain, dim=2), torch.ones(3, TOKENS))
    assert not torch.equal(edited[..., rest], tokens[..., rest])
    assert dose < 1 or edited[..., ids].eq(0).all()
    assert mu.Disrupt(range(WIDTH), "zero, same norm")(tokens, HERE).eq(0).all()  # nothing is left to scale


def test_shuffled_values_stay_in_their_image_and_channels_stay_together(tokens):
    ids = [1, 6, 7]
    edited = mu.Disrupt(arm(ids, "shuffled", seed=4))(tokens, HERE)
    assert torch.equal(edited[..., [0, 2, 3, 4, 5]], tokens[..., [0, 2, 3, 4, 5]])
    for row in range(3):
        before, after = (sorted(map(tuple, x[row][:, ids].tolist())) for x in (tokens, edited))
        assert before == after
        assert not torch.equal(edited[row], tokens[row])


def test_a_shuffle_depends_on_its_seed_and_site_and_on_no_other_row(tokens):
    def shuffled(x, seed, site=HERE):
        return mu.Disrupt(arm([1, 6], "shuffled", seed=seed))(x, site)

    alone = shuffled(tokens[1:2], 4)[0]
    arms = mu.Disrupt(arms=[Arm([0]), arm([6, 1], "shuffled", seed=4), arm([1, 6], "shuffled", seed=5)])(tokens, HERE)
    assert torch.equal(shuffled(tokens, 4)[1], alone) and torch.equal(shuffled(tokens.flip(0), 4)[1], alone)
    assert torch.equal(arms[1], alone) and torch.equal(arms[2], shuffled(tokens, 5)[2])
    assert torch.equal(shuffled(tokens, 4, site_at(branch="uncond"))[1], alone)  # guidance takes a difference
    for other in (shuffled(tokens, 5), shuffled(tokens, 4, site_at(layer=2)), shuffled(tokens, 4, site_at(step=1))):
        assert not torch.equal(other[1], alone)


def test_every_edit_can_be_an_arm_of_one_batch():
    """A row with its own set, edit and dose comes out as it does in a batch of its own."""
    tokens = torch.randn(8, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    sets, doses = [[0], [1, 7], [2, 3, 4], [5], [6, 0], [1, 2], [3, 4, 5, 6]], [1, 0.5, 1, 0.25, 1, 0.5, 1]
    arms = [None, *map(arm, sets, EDITS, doses)]
    probe = mu.Disrupt(arms=arms)
    edited = probe(tokens, HERE)
    assert torch.equal(edited[0], tokens[0])
    for row in range(1, 8):
        alone = mu.Disrupt(arms=[None, arms[row]])(tokens[[0, row]], HERE)
        assert torch.equal(edited[row], alone[1]) and not torch.equal(edited[row], tokens[row])
    share = (edited - tokens).square().sum((1, 2)) / tokens.square().sum((1, 2))
    np.testing.assert_allclose(probe.changed(), share, rtol=1e-4)


def test_a_subspace_is_edited_as_channels_are_in_its_own_axes(tokens):
    """In a basis of unit vectors it is the channels; a rotated one leaves what is orthogonal to it alone."""
    unit = xr.DataArray(np.eye(WIDTH)[:, [2, 5]], dims=("channel", "rank"))
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0]
    for edit in set(EDITS) - {"zero, same norm"}:
        by_ids, by_basis = (mu.Disrupt(arm(chosen, edit, 0.5))(tokens, HERE) for chosen in ([2, 5], unit))
        torch.testing.assert_close(by_basis, by_ids)
    basis = xr.DataArray(turned[:, :3], dims=("channel", "rank"))
    edited = mu.Disrupt(basis)(tokens, HERE).double() @ torch.as_tensor(turned)
    wanted = tokens.double() @ torch.as_tensor(turned)
    wanted[..., :3] = 0
    torch.testing.assert_close(edited, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="orthonormal"):
        Arm(2 * basis)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_levels_of_half_precision_tokens_are_exact_but_for_one_rounding(dtype):
    tokens = (300 + torch.randn(2, 4096, WIDTH, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact, average = tokens.double().mean(1, keepdim=True), float(LEVELS[0, 0, 1, 1])
    smooth = mu.Disrupt([1], "flat")(tokens, HERE)
    assert smooth.dtype == dtype and torch.equal(smooth[..., 1], exact[..., 1].to(dtype).expand(2, 4096))
    lower = mu.Disrupt(arm([1], "average level"))(tokens, HERE)[..., 1].double()
    wanted = tokens[..., 1].double() - exact[..., 1] + average
    torch.testing.assert_close(lower, wanted, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_sets_and_doses_may_differ_between_layers_steps_and_branches(tokens):
    ids = xr.DataArray([[[0], [3]], [[5], [6]]], {"step": [0, 1], "layer": [0, 1]}, ("step", "layer", "rank"))
    changed = (mu.Disrupt(ids)(tokens, HERE) != tokens).any(dim=(0, 1))
    assert changed.nonzero().flatten().tolist() == [3]
    where = xr.DataArray([[0.0, 1.0]], {"step": [0], "layer": [0, 1]}, ("step", "layer"))
    branch = xr.DataArray([0.5, 0.0], {"branch": ["cond", "uncond"]}, ("branch",))
    probe = mu.Disrupt(arms=[Arm([0], dose=dose) for dose in (where, 1 - where, branch)])
    edited = probe(tokens, HERE)  # layer 1, step 0, cond
    torch.testing.assert_close(edited[:, :, 0], tokens[:, :, 0] * torch.tensor([[0], [1], [0.5]]))
    assert torch.equal(edited[..., 1:], tokens[..., 1:])
    assert torch.equal(probe(tokens, site_at(branch="uncond"))[2], tokens[2])


def test_a_set_may_hold_a_dose_for_each_channel(tokens):
    doses = xr.DataArray([0, 1, 0, 0.25, 0, 0, 0, 0], dims="channel")
    edited = mu.Disrupt(doses, dose=0.5)(tokens, HERE)
    torch.testing.assert_close(edited, tokens * torch.tensor([1, 0.5, 1, 0.875, 1, 1, 1, 1]))


def test_changed_is_the_share_of_the_squared_norm_in_the_last_generation(tokens):
    probe, shares = mu.Disrupt(arms=[Arm([0, 3], "flat", 0.5), None, Arm([7], "zero, same norm")]), []
    for scale in (1, 3):
        edited = probe(scale * tokens, HERE)
        shares.append(((edited - scale * tokens) ** 2).sum((1, 2)) / (scale * tokens).square().sum((1, 2)))
    np.testing.assert_allclose(probe.changed(), torch.stack(shares).mean(0), rtol=1e-5)
    probe = mu.Disrupt([0])
    with pytest.raises(RuntimeError, match="has seen no tokens"):
        probe.changed()
    probe(torch.ones(3, 5, 8), site_at(generation=1))
    probe(torch.tensor([3.0, 4.0, 0, 0]).expand(2, 5, 4), site_at(generation=2))
    np.testing.assert_allclose(probe.changed(), [9 / 25, 9 / 25], rtol=1e-6)


def test_matched_channels_remove_the_same_squared_norm():
    power = xr.DataArray(np.random.default_rng(0).exponential(1, (3, 40)), dims=("layer", "channel"))
    power[:, 5] += 8  # massive, but less than half
    top = mu.select_channels(power, k=2)
    doses = matched_channels(power, top, seed=1)
    assert doses.dims == power.dims and doses.min() >= 0 and doses.max() <= 1
    assert float(doses.sel(channel=top).sum()) == 0
    assert ((doses > 0) & (doses < 1)).sum("channel").max() <= 1  # whole channels, and the part of one
    np.testing.assert_allclose(removed(power, doses), removed(power, top))
    np.testing.assert_allclose(removed(power, top), power.sel(channel=top).sum("rank") / power.sum("channel"))
    assert doses.equals(matched_channels(power, top, seed=1))
    assert not doses.equals(matched_channels(power, top, seed=2)) and not doses[0].equals(doses[1])
    most = xr.DataArray([1.0, 1.0, 8.0, 0.0], dims="channel")  # too much to be matched
    doses = matched_channels(most, xr.DataArray([2], dims="rank"))
    assert doses.values[:3].tolist() == [1, 1, 0] and float(removed(most, doses)) == pytest.approx(0.2)


def test_matched_channels_are_drawn_evenly():
    power = xr.DataArray(np.r_[4.0, np.ones(9)], dims="channel")
    drawn = sum(matched_channels(power, xr.DataArray([0], dims="rank"), seed=s) for s in range(300)) / 300
    np.testing.assert_allclose(drawn[1:], 4 / 9, atol=0.12)  # 4 of 9; standard error 0.03


GUIDED = pytest.mark.parametrize("recipe", [tiny.sd3, tiny.pixart, tiny.flux_cfg], ids=lambda recipe: recipe.__name__)


@GUIDED
def test_arms_are_rows_of_the_batch_whether_or_not_guidance_doubles_it(recipe):
    """The untouched row stays as it was; an arm's row is what the arm gives when every row has it."""
    recipe, same = recipe()._replace(batch=3), dict(prompts=(1, 1, 1), seeds=(3, 3, 3))
    plain, arms = tiny.run(recipe, **same), [None, Arm([0, 5]), Arm([1, 2, 3], "shuffled", seed=8)]
    with mu.attach(recipe.pipe, mu.Disrupt(arms=arms)) as disrupt:
        together = tiny.run(recipe, **same)
    assert torch.equal(together[0], plain[0]) and disrupt.changed()[0] == 0
    for row in (1, 2):
        with mu.attach(recipe.pipe, mu.Disrupt(arms[row])):
            alone = tiny.run(recipe, **same)
        assert torch.equal(together[row], alone[row]) and not torch.equal(together[row], plain[row])


@GUIDED
def test_each_branch_of_guidance_gets_its_own_level(recipe):
    """Levels against means over tokens kept by hand, of two generations; then what an edit leaves behind."""
    recipe = recipe()
    stats, before, after = mu.ChannelStats(), Watch(), Watch()
    with mu.attach(recipe.pipe, stats, before, branch="both"):
        tiny.run(recipe)
        tiny.run(recipe, prompts=(5,), seeds=(6,))
    levels = stats.dataset()["mean"].mean("image")
    assert set(levels.branch.values) == {"cond", "uncond"} and not levels.isnull().any()
    for (branch, step, layer), kept in before.tokens.items():
        wanted = np.concatenate([x.double().numpy() for x in kept]).mean((0, 1))
        np.testing.assert_allclose(levels.sel(branch=branch, step=step, layer=layer), wanted, rtol=1e-4, atol=1e-5)
    edit = mu.Disrupt(Arm([0, 3], "flat at average level", levels=levels))
    with mu.attach(recipe.pipe, edit), mu.attach(recipe.pipe, after, branch="both"):
        tiny.run(recipe, prompts=(7, 8), seeds=(1, 2))
    assert after.tokens.keys() == before.tokens.keys()
    for (branch, step, layer), (tokens,) in after.tokens.items():
        wanted = levels.sel(branch=branch, step=step, layer=layer).values[[0, 3]]
        np.testing.assert_array_equal(tokens[..., [0, 3]], np.broadcast_to(wanted, (*tokens.shape[:2], 2)))
    edit = mu.Disrupt(Arm([0], "average level", levels=levels.sel(branch=["cond"])))
    with mu.attach(recipe.pipe, edit, branch="cond"):
        tiny.run(recipe)
    with mu.attach(recipe.pipe, edit), pytest.raises(ValueError, match=r"no branch uncond; .*branch='both'"):
        tiny.run(recipe)


class Watch:
    """Keeps the tokens of every site, generation by generation."""

    edits = False

    def __init__(self):
        self.tokens = {}

    def __call__(self, tokens, site):
        self.tokens.setdefault((site.branch, site.step, site.layer), []).append(tokens.clone())


@pytest.mark.parametrize("edit", EDITS)
def test_nothing_is_read_from_the_device_inside_a_block(edit):
    """The meta device has no values: whatever reads one fails on it."""
    tokens = torch.empty(2, TOKENS, WIDTH, device="meta")
    for chosen in ([1], xr.DataArray(np.eye(WIDTH)[:, :2], dims=("channel", "rank"))):
        edited = mu.Disrupt(arms=[None, arm(chosen, edit, 0.5)])(tokens, HERE)
        assert edited.shape == tokens.shape and edited.device.type == "meta"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"edit": "none"}, "edit = 'none' .*zero; zero, same norm; flat"),
        ({"edit": "average level"}, r"'average level' needs the data set's levels .* got None"),
        ({"edit": "flat at average level", "levels": LEVELS.expand_dims(image=2)}, r"mean\('image'\)"),
        ({"edit": "two values"}, "needs the subject's mask"),
        ({"edit": "two values", "mask": 2 * np.ones((2, 2))}, "from 0 to 1"),
        ({"edit": "shuffled", "seed": -1}, "seed = -1"),
        ({"dose": 1.5}, "1.5"),
        ({"dose": float("nan")}, "nan"),
        ({"dose": xr.DataArray([1.0], dims="rank")}, "step and layer; dims .'rank'"),
        ({"channels": xr.DataArray([0.5, -1.0], dims="channel")}, "is not from 0 to 1"),
        ({"channels": xr.DataArray([[1]], dims=("image", "rank"))}, "image"),
        ({"channels": []}, "one at least"),
    ],
)
def test_bad_arguments_are_errors_before_any_work(arguments, named):
    with pytest.raises(ValueError, match=named):
        Arm(**{"channels": [1]} | arguments)


def test_what_does_not_fit_is_refused(tokens):
    for arguments in ({}, {"channels": [1], "arms": [Arm([1])]}):
        with pytest.raises(ValueError, match="either channels"):
            mu.Disrupt(**arguments)
    with pytest.raises(ValueError, match=r"arms = \[\[1\]\] are none; give an Arm"):
        mu.Disrupt(arms=[[1]])
    with pytest.raises(ValueError, match="an arm of a disruption has channels"):
        mu.Disrupt(arms=[Arm()])
    unmeasured = LEVELS.copy()
    unmeasured[:, :, 1] = np.nan
    for probe, named in (
        (mu.Disrupt(arms=[Arm([0]), None]), "3 rows in the batch for 2 arms"),
        (mu.Disrupt([8]), r"channels \[8\] do not exist; there are 8"),
        (mu.Disrupt(xr.DataArray([[0]], {"layer": [0]}, ("layer", "rank"))), r"no layer 1; they name \[0\]"),
        (mu.Disrupt([0], dose=xr.DataArray([1.0], {"step": [4]}, ("step",))), r"no step 0; they name \[4\]"),
        (mu.Disrupt(xr.DataArray([1.0, 0, 0], dims="channel")), "3 channels; there are 8"),
        (mu.Disrupt(Arm([0], "average level", levels=unmeasured)), "8 of them nan"),
    ):
        with pytest.raises(ValueError, match=named):
            probe(tokens, HERE)
