"""The small trainings of training/origins: every change does what it says, and the verdicts follow from the numbers."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure

import massact_utils as mu
import tiny
from massact_utils.worlds import toyworld
from training.origins import changes, factors, figures, measure, networks, scenes, train, verdicts

PLAN = train.plan()
FAST = (
    "base",
    "flux1",
    "sana",
    "no-gates",
    "rotated",
    "muon",
    "weighted",
)  # else slow


def world(n=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    latents, text = (torch.randn(n, *shape, generator=draw).half() for shape in ((36, 32), (5, 288)))
    subject = torch.zeros(n, 6, 6)
    subject[:, 2:4, 1:3] = 1
    return scenes.Scenes(latents, text, text[:1], subject.flatten(1))


def net(seed=0, awake=True, **change):
    """A net of width 64 with a change; awake: modulation and output are not zero, as after some training."""
    torch.manual_seed(seed)
    made = networks.Net(change | {"width": 64})
    for parameter in made.parameters():
        if awake and parameter.ndim == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def inputs(n=2, sigma=0.5):
    return torch.randn(n, 36, 32), torch.full((n,), sigma), torch.randn(n, 5, 288)


def modulation(made, sigma=0.5):
    with networks.modulated(made) as factors:
        made(*inputs(sigma=sigma))
    return torch.stack([factor[:, -1] for factor in factors.values()]).detach()  # block B 3 D


# ---------------------------------------------------------------- changes


@pytest.mark.parametrize(
    "variant", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PLAN]
)
def test_every_variant_of_the_plan_trains_and_shows_its_image_tokens(variant):
    change, own = PLAN[variant]["change"], world()
    made = net(awake=False, **change)

    def loss():  # always of the same batch
        return train.sample_loss(made, own, change, torch.Generator().manual_seed(0), batch=8).item()

    before = loss()
    start = {n: p.detach().clone() for n, p in made.named_parameters() if p.requires_grad and p.ndim > 1}
    train.train(made, own, change, steps=6, batch=8)
    assert loss() < before
    still = [name for name, p in made.named_parameters() if name in start and torch.equal(p, start[name])]
    text = ("add_", "context", "txt")  # of the last block, whose text nobody reads
    assert not [name for name in still if "blocks." in name and not any(part in name for part in text)], "a dead block"
    with mu.attach(made.transformer, stats := mu.ChannelStats()):
        made(own.latents.float(), torch.full((8,), 0.5), own.text.float())
    table = stats.dataset()
    assert {name: table.sizes[name] for name in ("image", "step", "layer", "channel")} == dict(
        image=8, step=1, layer=5, channel=64
    )


def test_the_plan_says_of_every_variant_what_would_refute_it():
    claims = [claim for row in PLAN.values() for claim in row["claims"]]
    assert {claim["measure"] for claim in claims} <= set(verdicts.LABELS)
    assert {claim["against"] for claim in claims} <= {"base", "ratio", "itself"}
    assert all(row["claims"] and (row["refuted"] or row["question"] == "architecture") for row in PLAN.values())


def test_parts_of_a_modulation_are_off_or_scalar():
    shift, scale, gate = modulation(net(off=["gate"])).unbind(2)
    assert (gate == 1).all() and shift.std() > 0 and scale.std() > 0
    shift, scale, gate = modulation(net(off=["shift", "scale"])).unbind(2)
    assert not shift.any() and not scale.any() and gate.std() > 0
    shift, scale, gate = modulation(net(scalar=True)).unbind(2)
    assert gate.std(-1).max() < 1e-6 and scale.std(-1).max() < 1e-6 and shift.std(-1).min() > 0


def test_without_modulation_the_timestep_still_counts():
    made = net(off=["shift", "scale", "gate"])
    for name, weight in made.named_parameters():
        if "blocks." in name and changes.residual_side(name) == "out":
            torch.nn.init.normal_(weight, std=0.1)
    x, _, text = inputs()
    early, late = (made(x, torch.full((2,), sigma), text) for sigma in (0.1, 0.9))
    assert not torch.allclose(early, late)


@pytest.mark.parametrize("family", ["flux1", "flux2", "sd3", "qwen", "lumina"])
def test_an_edit_of_a_gate_reaches_the_block(family):
    """With all gates at 0 no block adds anything to the image tokens."""

    def closed(index, factor):
        factor = factor.clone()
        factor[..., 2, :] = 0
        return factor

    made = net(family=family)
    with networks.modulated(made, closed), mu.attach(made.transformer, stats := mu.ChannelStats()):
        made(*inputs())
    means = stats.dataset()["mean"].isel(branch=0, step=0)
    assert np.allclose(means.isel(layer=0), means.isel(layer=-1), atol=1e-4)


@pytest.mark.parametrize("family", ["sana", "pixart"])
def test_factors_that_blocks_share_are_read_and_not_edited(family):
    made = net(family=family)
    for i, block in enumerate(made.transformer.transformer_blocks):
        torch.nn.init.constant_(block.scale_shift_table, float(i == 2))
    read = modulation(made)
    assert torch.allclose(read[2], read[1] + 1, atol=1e-5) and torch.equal(read[1], read[0])
    with pytest.raises(ValueError, match="share one projection"), networks.modulated(made, lambda i, f: f):
        made(*inputs())


def test_a_gated_norm_starts_as_a_norm():
    x = 3 + 2 * torch.randn(2, 7, 64)
    out = net(gated_norm=True, awake=False).transformer.single_transformer_blocks[0].norm(x)
    assert torch.allclose(out, torch.nn.functional.layer_norm(x, (64,)), atol=1e-5)


def test_rotated_weights_move_as_adamw_would_move_them_in_the_rotated_basis():
    """By hand: turn weight and gradient of the plain net, take AdamW's first step there, and turn back."""
    plain = net()
    rotated = copy.deepcopy(plain)
    changes.rotate(rotated.transformer)
    x, sigma, text = inputs(4, 0.3)
    assert torch.allclose(plain(x, sigma, text), rotated(x, sigma, text), atol=1e-3), "another function"
    left = {name for name, module in rotated.transformer.named_modules() if type(module) is torch.nn.Linear}
    assert left == {f"time_guidance_embed.timestep_embedder.linear_{i}" for i in (1, 2)}
    for made in (plain, rotated):
        (1e4 * made(x, sigma, text).square().mean()).backward()  # AdamW's first step asks for the sign alone
    (optimiser,) = train.optimisers(rotated, {})
    optimiser.step()
    for path, side in (("single_transformer_blocks.1.attn.to_out", "out"), ("transformer_blocks.0.attn.to_q", "in")):
        weight, module = (made.transformer.get_submodule(path) for made in (plain, rotated))
        weight, gradient = weight.weight.detach(), weight.weight.grad
        q = module.parametrizations.weight[0].q
        assert torch.allclose(q @ q.mT, torch.eye(64), atol=1e-5) and (q.abs() > 0.9).sum() == 0
        turned = [q.mT @ x if side == "out" else x @ q for x in (weight, gradient)]
        step = turned[1] / (turned[1].abs() + 1e-8)
        moved = turned[0] * (1 - train.RATE["adamw"] * 0.01) - train.RATE["adamw"] * step
        back = q @ moved if side == "out" else moved @ q.mT
        assert torch.isclose(module.weight, back, atol=2e-4).float().mean() > 0.99, path
        assert not torch.allclose(module.weight, weight - train.RATE["adamw"] * gradient.sign(), atol=2e-4)


def test_a_bias_reaches_every_token():
    given, made = inputs(), net(bias=True)
    before = made(*given)
    torch.nn.init.normal_(made.transformer.transformer_blocks[0].constant)
    assert ((made(*given) - before).abs().amax(-1) > 0).all()


def test_worlds_without_a_subject_and_with_another_ground():
    drawn = toyworld.sample(6, seed=1)
    plain, subject = scenes.draw(drawn, "drawn", 5)
    bare, none = scenes.draw(drawn, "textures", 5)
    assert subject.any((1, 2)).all() and not none.any()
    things = toyworld.render(drawn, seed=5, size=48)[1]
    ground = ~np.any([mask > 0 for mask in things.values()], axis=0)
    assert (things["subject"] == subject).all(), "the world is another one afterwards"
    same = (plain == bare).all(-1)
    assert same[ground].mean() > 0.9 and same[~ground].mean() < 0.1, "the ground is another one, or things are left"
    grey, _ = scenes.draw(drawn, "constant", 5)
    assert (grey[~subject] == 128).all() and (grey[subject] == plain[subject]).all()


# ---------------------------------------------------------------- runs and measures


def test_a_table_takes_in_finished_runs_and_never_another_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MASSACT_RUNS", str(tmp_path))
    file = tmp_path / "table.parquet"

    def run(variant, seed, steps, scenes):
        rows = [dict(step=1, sigma=0.5, measure="loss", value=1.0, layer=np.nan, channel=np.nan)]
        return pd.DataFrame(rows).assign(variant=variant, seed=seed)

    monkeypatch.setattr(train, "run", run)
    train.main(["base", "flux1", "--seeds", "0", "--table", str(file)])
    assert capsys.readouterr().out == "base, seed 0\nflux1, seed 0\n"
    train.main(["base", "qwen", "--seeds", "0", "--table", str(file)])
    assert capsys.readouterr().out == "qwen, seed 0\n", "a finished run is skipped"
    table = pd.read_parquet(file)
    assert set(table.variant) == {"base", "flux1", "qwen"} and not table.attrs["trial"]
    train.main(["--list", "--seeds", "0", "--table", str(file)])
    assert sum(" 1 of 1 " in line for line in capsys.readouterr().out.splitlines()) == 3
    with pytest.raises(SystemExit):
        train.main(["--steps", "60", "--table", str(file)])
    assert "another --table" in capsys.readouterr().err and len(pd.read_parquet(file)) == 3


def test_what_is_measured_is_what_the_tokens_are():
    """An independent reading of one layer's tokens: numpy's eigenvalues, kurtosis by its definition, plain shares."""
    made, own, states = net(), world(), {}
    draw = torch.Generator().manual_seed(0)
    own.subject = torch.stack([row[torch.randperm(36, generator=draw)] for row in own.subject])
    rows = measure.measure(made, own, own, own, sigmas=(0.5,))
    ends = rows[rows.channel.isna()].set_index(["measure", "layer"]).value

    def keep(tokens, site):
        states[site.layer] = tokens.numpy().astype(float)

    intact = measure.error(made, own, 0.5, keep)
    assert float(rows[rows.measure == "loss"].value.iloc[0]) == pytest.approx(intact)
    x = states[3]  # image N D
    energy, mean = (x**2).mean((0, 1)), x.mean(1)
    size = np.sqrt(energy)
    top = np.abs(x).mean((0, 1)).argsort()[::-1][:12]
    moment = np.einsum("inc,ind->cd", x, x) / (8 * 36)
    level = ((mean - mean.mean(0)) ** 2).mean(0)[top].sum() / energy[top].sum()
    pattern = ((x - mean[:, None]) ** 2).mean((0, 1))[top].sum() / energy[top].sum()
    expected = {
        "largest over median": np.sort(size)[-1] / float(torch.tensor(size).median()),
        "kurtosis": (size**4).mean() / (size**2).mean() ** 2,
        "energy in the top": np.sort(energy)[-12:].sum() / energy.sum(),
        "largest eigenvalue": np.linalg.eigvalsh(moment)[-1] / np.trace(moment),
        "level of top": level,
        "pattern of top": pattern,
        "constant of top": 1 - level - pattern,
    }
    assert {name: ends[name, 3] for name in expected} == pytest.approx(expected, rel=1e-3)
    losses = rows.set_index("measure").value
    assert losses["loss: zero, top"] > losses["loss: zero, bottom"] > 0


@pytest.mark.parametrize("family", ["sana", "lumina"])
def test_every_number_is_measured_of_classes_of_other_modulation(family):
    made, own = net(family=family), world()
    course = measure.Course(made, own)
    course(0), course(25)
    rows = [measure.measure(made, own, own, own, sigmas=(0.5,)).assign(step=25), course.table()]
    table = verdicts.numbers(pd.concat(rows).fillna(-1).assign(variant="base", seed=0)).iloc[0]
    assert table.notna().drop(["gate's largest", "others of the gate", "lead"]).all()
    assert np.isnan(table["gate's largest"]) == (family == "sana")


def test_a_finished_models_factors_are_those_its_modulation_gives(klein):
    """An independent reading: what the modulation's own modules return, taken apart by hand."""
    given, model = {"dual": [], "single": []}, klein.transformer
    for kind, module in (("dual", model.double_stream_modulation_img), ("single", model.single_stream_modulation)):
        module.register_forward_hook(lambda module, args, out, kind=kind: given[kind].append(out.detach()))
    prompts = ["a red star", "a blue circle"]
    data = factors.read(klein, prompts, [3, 4], **tiny.KLEIN)
    blocks, width = mu.blocks(klein), data.sizes["channel"]
    assert dict(data.factor.sizes) == {"image": 2, "layer": len(blocks), "part": 3, "channel": width}
    for kind, outs in given.items():
        shift, scale, gate = torch.stack(outs).unflatten(-1, (-1, 3, width)).unbind(-2)
        own = data.factor.isel(image=0, layer=[block.kind for block in blocks].index(kind))
        for name, value in (("|shift|", shift), ("|1 + scale|", 1 + scale), ("|gate|", gate)):
            expected = value.abs().flatten(0, -2).mean(0)
            np.testing.assert_allclose(own.sel(part=name), expected, rtol=1e-4, atol=1e-6)


def test_massive_channels_are_compared_with_the_median_of_the_others():
    scores = np.tile(np.linspace(1.0, 2.0, 20), (2, 1))
    scores[0, 3], scores[1, 5] = 30.0, 60.0  # a channel that enters the second block, and one that leaves it
    factor = np.ones((2, 3, 20))
    factor[1, 1, 3], factor[1, 2, 5] = 0.5, 4.0
    data = xr.Dataset({"mean_abs": (("image", "layer", "channel"), scores[None])})
    data["factor"] = (("image", "layer", "part", "channel"), factor[None])
    data = data.assign_coords(layer=[0, 1], part=list(factors.PARTS))
    rows = factors.at_the_top(data, ["dual", "single"], k=1).set_index(["layer", "factor"])
    read, gate = rows.loc[(1, "|1 + scale|")], rows.loc[(1, "|gate|")]
    assert (read.channel, read.ratio, read.kind) == (3, 0.5, "single")
    assert read["as read"] == pytest.approx(15 / np.median(scores[0]))
    assert (gate.channel, gate.ratio, gate.low, gate.high) == (5, 4, 1, 1)
    assert list(factors.at_the_top(data.drop_vars("factor"), ["dual", "single"], k=1)) == factors.COLUMNS


# ---------------------------------------------------------------- verdicts and figures


def trained(peaks, losses=None):
    """A table with nothing but what `numbers` needs: peaks and losses of variants, a value for each seed."""
    rows, losses = [], losses or {}
    for variant, values in peaks.items():
        for seed, value in enumerate(values):
            key = dict(variant=variant, seed=seed, step=100, sigma=0.5, channel=-1)
            named = {"largest over median": value, "kurtosis": 2.0, "energy in the top": 0.5, "largest eigenvalue": 0.5}
            named |= dict.fromkeys(("mIoU (oracle), top", "mIoU (oracle), outside 0", "level of top"), 0.3)
            named |= {"constant of top": 0.2}
            edits = ("zero, top", "zero, outside 0", "zero, bottom", "no pattern, top", "no level, top")
            whole = {f"loss: {edit}": 1.0 for edit in edits} | {"loss": losses.get(variant, 1.0)}
            for layer in (0, 1):
                rows += [key | dict(layer=layer, measure=m, value=v / (1 + layer)) for m, v in named.items()]
            rows += [key | dict(layer=-1, measure=m, value=v) for m, v in whole.items()]
    return pd.DataFrame(rows)


def test_a_verdict_needs_a_range_a_base_and_a_loss():
    claim = dict(measure="peak", against="base", side="below", threshold=-1.0, explanation="it is the cause")
    variants = ("less", "same", "both", "lost", "once", "absent")
    known = {name: dict(question="modulation", claims=[claim]) for name in variants}
    peaks = {"base": [16, 16, 16], "less": [4, 4, 2], "same": [16, 15, 16], "both": [4, 16, 16], "lost": [4, 4, 4]}
    table = trained(peaks | {"once": [4, 4]}, {"lost": 1.2})
    rows = verdicts.verdicts(known, table)
    expected = ["holds", "contradicted", "undecided", "did not train", "undecided", "not trained yet"]
    assert rows.verdict.tolist() == expected
    assert rows.loc[0, ["value", "low", "high"]].tolist() == pytest.approx([-7 / 3, -3, -2])
    text = "Of 5 claims, 1 holds: less; 1 contradicted: same; 2 undecided: both, once;"
    text += " 1 left out, for a loss over 110% of the base's: lost."
    assert verdicts.sentence(rows) == f"{text} A verdict takes 3 seeds."
    nothing = verdicts.verdicts(known, trained({"base": [16]}))
    assert verdicts.sentence(nothing) == "No variant of this question is trained yet."
    known["lost"]["other_task"] = True
    assert verdicts.verdicts(known, table).set_index("variant").verdict["lost"] == "holds"


@pytest.mark.parametrize(
    "rotated, scalar, both, text",
    [
        (4, 16, 4, "So Adam's axes matter most; modulation adds nothing that shows."),
        (16, 4, 2, "So modulation matters most; Adam's axes add less."),
        (4, 4, 4, "25% was left where the optimiser saw rotated axes, 25% where modulation"),
        (4, 4, 4, "needs both"),
        (16, 16, 4, "needs one of the two"),
        (16, 16, 16, "needs neither"),
        (8, 16, 16, "do not yet tell"),
    ],
)
def test_the_two_by_two_design_is_read_as_the_notebook_predicts(rotated, scalar, both, text):
    peaks = {"base": [16] * 3, "rotated": [rotated] * 3, "scalar": [scalar] * 3, "rotated-scalar": [both] * 3}
    assert text in verdicts.adam_or_modulation(verdicts.verdicts(PLAN, trained(peaks)))


@pytest.mark.parametrize("part", ["base", "all"])
def test_every_figure_is_drawn_however_much_is_trained(part):
    names = [name for name, row in PLAN.items() if part in ("all", name)]
    table = trained({name: [16, 15, 14 - i % 12] for i, name in enumerate(names)})
    rows = verdicts.verdicts(PLAN, table)
    peaks = rows[(rows.measure == "peak") & (rows.against == "base") & (rows.seeds > 0)]
    ax = figures.ranges(peaks, ax=Figure().subplots())
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        figures.NAMES.get(name, name) for name in peaks.sort_values("value").variant
    ]
    classes = [name for name in names if PLAN[name]["question"] == "architecture"]
    ax = figures.grid(rows, classes, PLAN["base"]["claims"], ax=Figure().subplots())
    assert len(ax.texts) == 6 * len(classes)
    axes = figures.panels(verdicts.numbers(table), names, ["level", "peak"], axes=Figure().subplots(1, 2))
    assert all(len(ax.lines) == len(names) for ax in axes)


def test_claims_of_trainings_are_filed_with_what_was_found_in_levels(tmp_path):
    claim = dict(
        measure="peak", against="base", side="below", threshold=-1.0, explanation="It is the cause.", owner="ours"
    )
    known = {name: dict(question="modulation", claims=[claim]) for name in ("less", "once", "absent")}
    rows = verdicts.verdicts(known, trained({"base": [16, 16, 16], "less": [4, 4, 2], "once": [4, 4]}))
    verdicts.file_claims(run := mu.Run(tmp_path, {"model": "toy"}), rows)
    less, once = json.loads((run.folder / "claims.json").read_text())
    assert (less["id"], less["verdict"], once["verdict"]) == ("05.less-peak", "holds", "undecided")
    assert less["note"] == "With less the largest channel was 20% of the base's (12% to 25% over 3 seeds)."
    assert once["low"] is None and once["note"] == "undecided"


@pytest.mark.parametrize(
    "switch, live, named",
    [("none", 0, "is no variant"), ("rotated", 9, "25 and more"), ("rotated", 0, "no recorded course")],
)
def test_a_switch_that_cannot_be_shown_is_refused(switch, live, named):
    with pytest.raises(ValueError, match=named):
        verdicts.check_switch(switch, live, PLAN, {"base": 3})


def test_equal_loss_compares_where_both_had_the_worse_ones_loss():
    rows = []
    for variant, losses, peaks in (("base", (4, 2, 1), (2, 4, 8)), ("slow", (4, 3, 2), (2, 2, 4))):
        for step, (loss, peak) in enumerate(zip(losses, peaks, strict=True)):
            key = dict(variant=variant, seed=0, step=step, sigma=0.5)
            rows += [key | dict(layer=-1, measure="course: loss", value=loss)]
            rows += [key | dict(layer=i, measure="course: largest over median", value=peak / (1 + i)) for i in (0, 1)]
    row = verdicts.at_equal_loss(pd.DataFrame(rows)).loc["slow"]
    assert row["equal samples"] == pytest.approx(-1) and row["equal loss"] == pytest.approx(0)


def test_the_lead_says_whose_gate_passed_twice_the_median_for_good_before_the_channel():
    def course(channel, activation, gate):  # from which step on each is over twice the median; None: never
        key = dict(variant="base", seed=1, layer=2, channel=channel, sigma=0.5)
        over = lambda step, since: 1.5 if since is not None and step >= since else 0.5  # noqa: E731
        for step in range(0, 200, 25):
            yield key | dict(step=step, measure="course: activation of top", value=over(step, activation))
            if step:  # a gate begins at zero, where there is no ratio
                yield key | dict(step=step, measure="course: gate of top", value=over(step, gate))

    def lead(*courses):
        return verdicts.lead(pd.DataFrame([row for i, ends in enumerate(courses) for row in course(i, *ends)]))

    assert lead((100, 50), (150, 125))["base", 1] == 1
    assert lead((100, 50), (100, 150), (100, None))["base", 1] == pytest.approx(-1 / 3)
    assert np.isnan(lead((100, 50), (100, None), (100, None))["base", 1]), "most gates never pass: no order"
    assert lead((100, 100), (None, 25))["base", 1] == 0  # together; one that never gets there does not count
    assert ("base", 1) not in lead((None, 50), (None, None)).index
    rows = pd.DataFrame([*course(0, 100, 50)])
    flash = (rows.step == 25) & (rows.measure == "course: activation of top")
    assert verdicts.lead(rows.assign(value=rows.value.where(~flash, 3)))["base", 1] == 1, "for good, not for a moment"
    assert verdicts.lead(rows[rows.measure != "course: gate of top"]).empty


def test_the_committed_table_is_of_the_plan():
    table = pd.read_parquet(train.TABLE)
    assert set(table.variant.unique()) <= set(PLAN) and train.TABLE.stat().st_size < 5 * 2**20
    rows = verdicts.verdicts(PLAN, table)
    assert "not trained yet" not in set(rows[rows.variant.isin(table.variant.unique())].verdict)
    assert figures.courses(table[(table.variant == "base") & (table.seed == 0)], axes=Figure().subplots(1, 2)).size == 2
