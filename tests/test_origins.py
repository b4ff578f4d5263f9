"""The small trainings of training/origins: every change does what it says, and the verdicts follow from the numbers."""

import copy
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure

import massact_utils as mu
import tiny
from massact_utils.measures import evidence
from massact_utils.worlds import toyworld
from training.origins import factors, figures, networks, train, verdicts

PLAN = train.plan()


def world(n=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    latents, text = (torch.randn(n, *shape, generator=draw).half() for shape in ((36, 32), (5, 288)))
    subject = torch.zeros(n, 6, 6)
    subject[:, 2:4, 1:3] = 1
    return train.Seen(latents, text, text[:1], subject.flatten(1))


def net(seed=0, awake=True, **change):
    """A net of width 64 with a change; awake: modulation and output are not zero, as after some training."""
    torch.manual_seed(seed)
    made = networks.Net(change | {"width": 64})
    for parameter in made.parameters():
        if awake and parameter.ndim == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize("variant", PLAN)
def test_every_variant_of_the_plan_trains_and_shows_its_image_tokens(variant):
    change, seen = PLAN[variant]["change"], world()
    made = net(awake=False, **change)

    def loss():  # always of the same batch
        return train.sample_loss(made, seen, change, torch.Generator().manual_seed(0), batch=8).item()

    before = loss()
    start = {n: p.detach().clone() for n, p in made.named_parameters() if p.requires_grad and p.ndim > 1}
    train.train(made, seen, change, steps=6, batch=8)
    assert loss() < before
    still = [name for name, p in made.named_parameters() if name in start and torch.equal(p, start[name])]
    text = ("add_", "context", "txt")  # of the last block, whose text nobody reads
    assert not [name for name in still if "blocks." in name and not any(part in name for part in text)], "a dead block"
    with mu.attach(made.transformer, stats := mu.ChannelStats()):
        made.velocity(seen.latents.float(), torch.full((8,), 0.5), seen.text.float())
    table = stats.dataset()
    assert dict(table.sizes) == {"image": 8, "step": 1, "layer": 5, "channel": 64}
    assert [block.name for block in mu.blocks(made.transformer)] == [str(name) for name in table.name.values]


def test_the_plan_says_of_every_variant_what_would_refute_it():
    rows = [claim for row in PLAN.values() for claim in row["claims"]]
    assert {row["measure"] for row in rows} <= set(verdicts.LABELS.keys()) and {row["against"] for row in rows} <= {
        "base",
        "itself",
    }
    for variant, row in PLAN.items():
        assert row["claims"] and (row["refuted"] or row["question"] == "architecture"), variant
    order = [row["part"] for row in PLAN.values()]
    assert order == sorted(order) and set(order) == {"essential", "rest"}


def modulation(made, sigma=0.5):
    with networks.modulated(made) as found:
        made(torch.randn(2, 36, 32), torch.full((2,), sigma), torch.randn(2, 5, 288))
    return torch.stack([factor[:, -1] for factor in found.values()]).detach()  # block B 3 D


def test_parts_of_a_modulation_are_off_still_or_scalar():
    shift, scale, gate = modulation(net(off=["gate"])).unbind(2)
    assert (gate == 1).all() and shift.std() > 0 and scale.std() > 0
    shift, scale, gate = modulation(net(off=["shift", "scale"])).unbind(2)
    assert not shift.any() and not scale.any() and gate.std() > 0
    made = net(still=["gate"])
    for name, parameter in made.named_parameters():
        if ".still." in name:
            torch.nn.init.normal_(parameter)
    early, late = modulation(made, 0.9), modulation(made, 0.1)
    assert early[:, :, 2].std(-1).min() > 0 and torch.equal(early[:, :, 2], late[:, :, 2])
    assert not torch.allclose(early[:, :, 0], late[:, :, 0])
    shift, scale, gate = modulation(net(scalar=True)).unbind(2)
    assert gate.std(-1).max() < 1e-6 and scale.std(-1).max() < 1e-6 and shift.std(-1).min() > 0


def test_a_block_has_a_modulation_of_its_own_only_where_it_is_asked_for():
    shared, own = modulation(net())[1:], modulation(net(per_block=True))[1:]
    assert (shared == shared[:1]).all() and not torch.allclose(own[0], own[1])


def test_without_modulation_the_timestep_still_counts():
    made, x, text = net(off=["shift", "scale", "gate"]), torch.randn(2, 36, 32), torch.randn(2, 5, 288)
    for name, weight in made.named_parameters():
        if "blocks." in name and networks.residual(name) == "out":
            torch.nn.init.normal_(weight, std=0.1)
    early, late = (made(x, torch.full((2,), sigma), text) for sigma in (0.1, 0.9))
    assert not torch.allclose(early, late)


@pytest.mark.parametrize("family", ["flux1", "flux2", "sd3", "qwen", "lumina"])
def test_an_edit_of_a_gate_reaches_the_block(family):
    """With all gates at 0 no block adds anything to the image tokens."""

    def closed(index, factor):
        factor = factor.clone()
        factor[..., 2, :] = 0
        return factor

    made, seen = net(family=family), world()
    with networks.modulated(made, closed):
        with mu.attach(made.transformer, stats := mu.ChannelStats()):
            made(seen.latents.float(), torch.full((8,), 0.5), seen.text.float())
    means = stats.dataset()["mean"].isel(step=0)
    assert np.allclose(means.isel(layer=0), means.isel(layer=-1), atol=1e-4)


@pytest.mark.parametrize("family", ["sana", "pixart"])
def test_factors_that_blocks_share_are_read_and_not_edited(family):
    made = net(family=family)
    for i, block in enumerate(made.transformer.transformer_blocks):
        torch.nn.init.constant_(block.scale_shift_table, float(i == 2))
    found = modulation(made)
    assert torch.allclose(found[2], found[1] + 1, atol=1e-5) and torch.equal(found[1], found[0])
    with pytest.raises(ValueError, match="share one projection"), networks.modulated(made, lambda i, f: f):
        pass


def norms_of(made):
    block = made.transformer.single_transformer_blocks[0]
    x = 3 + 2 * torch.randn(2, 7, 64)
    return x, block.norm(x)


def test_norms_are_what_they_say():
    x, out = norms_of(net(norm="rms"))
    assert torch.allclose(out, x / x.square().mean(-1, keepdim=True).sqrt(), atol=1e-4)
    x, out = norms_of(net(norm="none"))
    assert torch.equal(x, out)
    x, out = norms_of(net(norm="gated", awake=False))
    assert torch.allclose(out, torch.nn.functional.layer_norm(x, (64,)), atol=1e-5)
    for norm in ("post", "sandwich"):
        made, seen = net(norm=norm), world()
        with mu.attach(made.transformer, stats := mu.ChannelStats()):
            made(seen.latents.float() * 50, torch.full((8,), 0.5), seen.text.float())
        energy = stats.dataset().mean_sq.mean("channel")
        assert bool((abs(energy - 1) < 1e-3).all()) == (norm == "post")


def test_rotated_weights_move_as_adamw_would_move_them_in_the_rotated_basis():
    """By hand: turn weight and gradient of the plain net, take AdamW's first step there, and turn back."""
    plain, seen = net(), world()
    rotated = copy.deepcopy(plain)
    networks.rotate(rotated.transformer)
    for made in (plain, rotated):
        x, sigma, text = seen.latents[:4].float(), torch.full((4,), 0.3), seen.text[:4].float()
        (1e4 * made(x, sigma, text).square().mean()).backward()  # AdamW's first step asks for the sign alone
    (optimiser,) = train.optimisers(rotated, {"decay": 0.1})
    optimiser.step()
    for path, side in (("single_transformer_blocks.1.attn.to_out", "out"), ("transformer_blocks.0.attn.to_q", "in")):
        weight, module = (made.transformer.get_submodule(path) for made in (plain, rotated))
        weight, gradient = weight.weight.detach(), weight.weight.grad
        q = module.parametrizations.weight[0].q
        assert torch.allclose(q @ q.mT, torch.eye(64), atol=1e-5) and (q.abs() > 0.9).sum() == 0
        there = [q.mT @ x if side == "out" else x @ q for x in (weight, gradient)]
        step = there[1] / (there[1].abs() + 1e-8)
        moved = there[0] * (1 - train.RATE["adamw"] * 0.1) - train.RATE["adamw"] * step
        back = q @ moved if side == "out" else moved @ q.mT
        close = torch.isclose(module.weight, back, atol=2e-4).float().mean()
        assert close > 0.99, path
        assert not torch.allclose(module.weight, weight - train.RATE["adamw"] * gradient.sign(), atol=2e-4)


def test_a_rotation_covers_every_weight_at_the_residual_stream_and_changes_no_function():
    plain = net()
    rotated = copy.deepcopy(plain)
    networks.rotate(rotated.transformer)
    x, sigma, text = torch.randn(2, 36, 32), torch.full((2,), 0.3), torch.randn(2, 5, 288)
    assert torch.allclose(plain(x, sigma, text), rotated(x, sigma, text), atol=1e-3)
    untouched = {name for name, module in rotated.transformer.named_modules() if type(module) is torch.nn.Linear}
    assert untouched == {f"time_guidance_embed.timestep_embedder.linear_{i}" for i in (1, 2)}


def test_gates_rows_are_permuted_and_nothing_else():
    made = net()
    optimisers = train.optimisers(made, {})
    train.sample_loss(made, world(), {}, torch.Generator().manual_seed(0), batch=4).backward()
    optimisers[0].step()
    weight = made.transformer.single_stream_modulation.linear.weight
    memory = optimisers[0].state[weight]["exp_avg"]
    before, old = weight.detach().clone(), memory.clone()
    networks.permute_gates(made, optimisers, seed=3)
    to = networks.permutation(64, 3)
    assert sorted(to.tolist()) == list(range(64)) and to.tolist() != list(range(64))
    assert torch.equal(weight[:128], before[:128]) and torch.equal(memory[:128], old[:128])
    for i in (0, 5, 63):
        assert torch.equal(weight[128 + to[i]], before[128 + i]) and torch.equal(memory[128 + to[i]], old[128 + i])


def test_registers_and_biases_reach_every_token():
    x, sigma, text = torch.randn(2, 36, 32), torch.full((2,), 0.3), torch.randn(2, 5, 288)
    for change in ({"registers": 4}, {"bias": True}):
        made = net(**change)
        before = made(x, sigma, text)
        torch.nn.init.normal_(
            made.transformer.transformer_blocks[0].constant if made.registers is None else made.registers
        )
        assert ((made(x, sigma, text) - before).abs().amax(-1) > 0).all()


@pytest.mark.parametrize("target", ["velocity", "image", "noise"])
@pytest.mark.parametrize("skip", [False, True])
def test_every_target_is_read_as_a_velocity(target, skip):
    """A net that says its target exactly has the exact velocity; one that says 0 beside a skip is the best guess."""
    made, x, noise = net(awake=False, target=target, skip=skip), torch.randn(4000, 36, 32), torch.randn(4000, 36, 32)
    sigma = torch.full((4000,), 0.3)
    noisy = 0.7 * x + 0.3 * noise
    exact = {"velocity": noise - x, "image": x, "noise": noise}[target]
    made.forward = lambda noisy, sigma, text: exact
    assert torch.allclose(made.velocity(noisy, sigma, None), noise - x, atol=1e-4)
    best = float((noisy * exact).sum() / noisy.square().sum())  # least squares
    assert float(made.known(torch.tensor(0.3))) == pytest.approx(best, abs=0.01)


def test_worlds_without_a_subject_and_with_another_ground():
    scenes = toyworld.sample(6, seed=1)
    plain, subject = train.drawn(scenes, "drawn", 5)
    bare, none = train.drawn(scenes, "textures", 5)
    assert subject.any((1, 2)).all() and not none.any()
    things = toyworld.render(scenes, seed=5, size=48)[1]
    ground = ~np.any([*things.values()], axis=0)
    assert (things["subject"] == subject).all(), "the world is another one afterwards"
    same = (plain == bare).all(-1)
    assert same[ground].mean() > 0.9 and same[~ground].mean() < 0.1, "the ground is another one, or things are left"
    grey, _ = train.drawn(scenes, "constant", 5)
    assert (grey[~subject] == 128).all() and (grey[subject] == plain[subject]).all()
    many, _ = train.drawn(scenes, "per token", 5)
    cells = many.reshape(6, 6, 8, 6, 8, 3)
    assert (cells[:, :, :1, :, :1] == cells)[~subject.reshape(6, 6, 8, 6, 8)].mean() > 0.7


def test_a_run_that_was_killed_ends_as_one_that_was_not():
    kept, seen, made = [], world(), net(awake=False)
    whole = train.train(made, seen, {}, steps=205, batch=2, save=lambda state: kept.append(copy.deepcopy(state)))
    assert [state["step"] for state in kept] == [200, 205]
    again = net(seed=5, awake=False)
    assert np.allclose(train.train(again, seen, {}, steps=205, batch=2, state=kept[0]), whole, rtol=1e-4)
    for one, other in zip(made.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_runs_join_those_of_the_table_and_never_another_recipe(tmp_path, monkeypatch, capsys):
    def run(variant, seed, value, folder):
        rows = [dict(variant=variant, seed=seed, step=1, sigma=0.5, measure="loss", value=value)]
        pd.DataFrame(rows).assign(layer=np.nan, channel=np.nan).to_parquet(folder / f"{variant}-{seed}.parquet")

    here, there, table = tmp_path / "here", tmp_path / "there", tmp_path / "table.parquet"
    here.mkdir(), there.mkdir()
    made = train.recipe(train.STEPS, train.SCENES)
    run("base", 0, 1.0, there), run("flux1", 0, 2.0, there)
    train.gather(there, made, table)
    run("flux1", 0, 3.0, here), run("sd3", 0, 4.0, here)
    train.gather(here, made, table)
    found = pd.read_parquet(table).astype({"variant": str}).set_index(["variant", "seed"]).value
    assert found.to_dict() == {("base", 0): 1.0, ("flux1", 0): 3.0, ("sd3", 0): 4.0}
    with pytest.raises(ValueError, match="another --table"):
        train.gather(here, made | {"steps": 60}, table)
    assert len(pd.read_parquet(table)) == 3
    monkeypatch.setenv("MASSACT_RUNS", str(tmp_path))
    words = ["train.py", "--table", str(table), "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", [*words, "--variants", "base,qwen", "--list"])
    train.main()
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["1", "0"]
    monkeypatch.setattr(sys, "argv", [*words, "--variants", "base"])
    monkeypatch.setattr(train, "one", lambda *of: pytest.fail(f"{of} was trained anew"))
    train.main()
    monkeypatch.setattr(sys, "argv", [*words, "--steps", "60"])
    with pytest.raises(SystemExit):
        train.main()
    assert "another --table" in capsys.readouterr().err


def test_what_is_measured_is_what_the_tokens_are():
    """An independent reading of one layer's tokens: numpy's eigenvalues, kurtosis by its definition, plain shares."""
    made, seen, states = net(), world(), {}
    draw = torch.Generator().manual_seed(0)
    seen.subject = torch.stack([row[torch.randperm(36, generator=draw)] for row in seen.subject])
    found = train.measured(made, seen, seen, seen, {"one_sigma": True})
    ends = found[found.channel.isna()].set_index(["measure", "layer"]).value

    def keep(tokens, site):
        states[site.layer] = tokens.numpy().astype(float)

    intact = train.error(made, seen, 0.5, {}, keep)
    assert float(found[found.measure == "loss"].value.iloc[0]) == pytest.approx(intact)
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
    lost = found.set_index("measure").value
    assert lost["loss: zero, top"] > lost["loss: zero, bottom"] > 0


@pytest.mark.parametrize("family", ["sana", "pixart", "lumina"])
def test_every_number_is_there_for_classes_of_other_modulation(family):
    made, seen = net(family=family), world()
    named = {name for name in train.measured(made, seen, seen, seen, {"one_sigma": True}).measure}
    assert {"gate: rank correlation", "gate at the top", "loss: no level, top", "mIoU (oracle), top"} <= named
    assert ("loss: gate's largest" in named) == (family == "lumina")


def spoken(peaks, losses=None):
    """A table with nothing but what `numbers` needs: peaks and losses of variants, a value for each seed."""
    rows, losses = [], losses or {}
    for variant, values in peaks.items():
        for seed, value in enumerate(values):
            key = dict(variant=variant, seed=seed, step=100, sigma=0.5, channel=-1)
            named = {"largest over median": value, "kurtosis": 2.0, "energy in the top": 0.5, "largest eigenvalue": 0.5}
            named |= dict.fromkeys(("mIoU (oracle), top", "mIoU (oracle), outside 0", "level of top"), 0.3)
            named |= dict.fromkeys(("constant of top", "top moved with the gate", "top kept since half"), 0.2)
            edits = ("zero, top", "zero, outside 0", "zero, bottom", "no pattern, top", "no level, top")
            whole = {f"loss: {edit}": 1.0 for edit in edits} | {"loss": losses.get(variant, 1.0)}
            for layer in (0, 1):
                rows += [key | dict(layer=layer, measure=m, value=v / (1 + layer)) for m, v in named.items()]
            rows += [key | dict(layer=-1, measure=m, value=v) for m, v in whole.items()]
    return pd.DataFrame(rows)


def test_a_verdict_needs_a_range_a_base_and_a_loss():
    claim = [dict(measure="peak", against="base", side="below", threshold=-1.0, explanation="it is the cause")]
    known = {
        name: dict(question="modulation", claims=claim) for name in ("less", "same", "both", "lost", "once", "absent")
    }
    peaks = {"base": [16, 16, 16], "less": [4, 4, 2], "same": [16, 15, 16], "both": [4, 16, 16], "lost": [4, 4, 4]}
    table = spoken(peaks | {"once": [4, 4]}, {"lost": 1.2})
    found = verdicts.verdicts(known, table).set_index("variant")
    expected = ["holds", "contradicted", "undecided", "did not train", "undecided", "not trained yet"]
    assert found.verdict.tolist() == expected
    assert found.loc["less", ["value", "low", "high"]].tolist() == pytest.approx([-7 / 3, -3, -2])
    assert found.loc["less", "verdict"] == evidence.verdict(-3, -2, -1.0, "below")
    known["lost"]["other_task"] = True
    assert verdicts.verdicts(known, table).set_index("variant").verdict["lost"] == "holds"


def test_what_we_now_know_names_every_trained_claim_once():
    claim = dict(measure="peak", against="base", side="below", threshold=-1.0, explanation="it is the cause")
    other = claim | dict(measure="kurtosis")
    known = {name: dict(question="modulation", claims=[claim]) for name in ("less", "lost", "absent")}
    known["two"] = dict(question="modulation", claims=[claim, other])
    peaks = {"base": [16, 16, 16], "less": [4, 4, 2], "two": [16, 16, 16], "lost": [4, 4, 4]}
    rows = verdicts.verdicts(known, spoken(peaks, {"lost": 1.2}))
    expected = "of 4 claims, 1 holds: less; 2 are contradicted: two (peak), two (kurtosis); 1 did not train: lost."
    assert verdicts.sentence(rows) == f"What we now know: {expected}"
    assert verdicts.told(rows).index.tolist() == ["less", "lost", "two", "two"]
    few = verdicts.verdicts(known, spoken({"base": [16, 16], "less": [4, 4]}))
    assert verdicts.sentence(few) == "What we now know: of 1 claim, 1 is undecided: less. A verdict takes 3 seeds."
    nothing = verdicts.verdicts(known, spoken({"base": [16, 16]}))
    assert "nothing yet" in verdicts.sentence(nothing) and verdicts.told(nothing).empty


@pytest.mark.parametrize(
    "rotated, scalar, both, said",
    [
        (4, 16, 4, "need Adam's axes, and not modulation's."),
        (16, 4, 4, "need modulation's axes, and not Adam's."),
        (16, 4, 2, "not Adam's; without modulation's, Adam's still make them larger."),
        (4, 4, 4, "need both"),
        (16, 16, 4, "either axes are enough"),
        (16, 16, 16, "need neither"),
        (8, 16, 16, "do not yet tell"),
    ],
)
def test_the_two_by_two_design_is_read_as_the_notebook_predicts(rotated, scalar, both, said):
    peaks = {"base": [16] * 3, "rotated": [rotated] * 3, "scalar": [scalar] * 3, "rotated-scalar": [both] * 3}
    rows = verdicts.verdicts(PLAN, spoken(peaks))
    assert said in verdicts.adam_or_modulation(rows)


@pytest.mark.parametrize("part", ["base", "essential", "all"])
def test_every_figure_is_drawn_however_much_is_trained(part):
    some = [name for name, row in PLAN.items() if part in ("all", row["part"], name)]
    table = spoken({name: [16, 15, 14 - i % 12] for i, name in enumerate(some)})
    found, rows = verdicts.numbers(table), verdicts.verdicts(PLAN, table)
    peaks = rows[(rows.measure == "peak") & (rows.against == "base") & (rows.seeds > 0)]
    ax = figures.ranges(peaks, ax=Figure().subplots())
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == peaks.sort_values("value").variant.tolist() and "base" not in names
    classes = [name for name in some if PLAN[name]["question"] == "architecture"]
    ax = figures.grid(rows, classes, PLAN["base"]["claims"], ax=Figure().subplots())
    assert len(ax.texts) == 6 * len(classes)
    trained = [name for name in some if PLAN[name]["question"] == "data"]
    axes = figures.panels(found, trained, ["level", "peak"], figure=(figure := Figure()))
    assert len(axes) == (2 if trained else 0) and bool(figure.texts) == (not trained)
    course = pd.DataFrame({"equal samples": -1.0, "equal loss": -0.5}, trained)
    assert len(figures.equal(course, ax=Figure().subplots()).get_yticks()) == len(trained)


def test_a_finished_models_factors_are_those_its_modulation_gives(klein):
    """An independent reading: what the modulation's own modules return, taken apart by hand."""
    given, model = {"dual": [], "single": []}, klein.transformer
    for kind, module in (("dual", model.double_stream_modulation_img), ("single", model.single_stream_modulation)):
        module.register_forward_hook(lambda module, args, out, kind=kind: given[kind].append(out.detach()))
    words = ["a red star", "a blue circle"]
    data = factors.read(klein, words, [3, 4], **tiny.KLEIN)
    plain = mu.ChannelStats()
    with mu.attach(klein, plain):
        mu.generate(klein, words, seeds=[3, 4], **tiny.KLEIN)
    blocks, width = mu.blocks(klein), data.sizes["channel"]
    assert dict(data.factor.sizes) == {"image": 2, "layer": len(blocks), "part": 3, "channel": width}
    np.testing.assert_allclose(data.mean_abs, plain.dataset().mean_abs.mean("step"), rtol=1e-5)
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
    nothing = factors.at_the_top(data.drop_vars("factor"), ["dual", "single"], k=1)
    assert nothing.empty and list(nothing) == factors.COLUMNS
    assert nothing.pivot_table(index="factor", columns="layer", values="ratio", aggfunc="median").empty


@pytest.mark.parametrize("family", ["flux2", "sana", "pixart", "lumina"])
def test_modulations_are_watched_at_every_call(family):
    made, seen = net(family=family), []
    with networks.modulated(made, watch=lambda layer, factor: seen.append((layer, tuple(factor.shape)))):
        for _ in range(2):
            made(torch.randn(2, 36, 32), torch.full((2,), 0.5), torch.randn(2, 5, 288))
    assert [layer for layer, _ in seen] == [*range(5)] * 2
    assert {shape[2:] for _, shape in seen} == {(3, 64)}


def test_equal_loss_compares_where_both_had_the_worse_ones_loss():
    rows = []
    for variant, losses, peaks in (("base", (4, 2, 1), (2, 4, 8)), ("slow", (4, 3, 2), (2, 2, 4))):
        for step, (loss, peak) in enumerate(zip(losses, peaks, strict=True)):
            key = dict(variant=variant, seed=0, step=step, sigma=0.5)
            rows += [key | dict(layer=-1, measure="course: loss", value=loss)]
            rows += [key | dict(layer=i, measure="course: largest over median", value=peak / (1 + i)) for i in (0, 1)]
    found = verdicts.at_equal_loss(pd.DataFrame(rows)).loc["slow"]
    assert found["equal samples"] == pytest.approx(-1) and found["equal loss"] == pytest.approx(0)


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
    assert lead((100, 100), (None, 25))["base", 1] == 0  # together; and one that never gets there, which does not count
    assert ("base", 1) not in lead((None, 50), (None, None)).index
    rows = pd.DataFrame([*course(0, 100, 50)])
    flash = (rows.step == 25) & (rows.measure == "course: activation of top")
    assert verdicts.lead(rows.assign(value=rows.value.where(~flash, 3)))["base", 1] == 1, "for good, not for a moment"
    assert verdicts.lead(rows[rows.measure != "course: gate of top"]).empty


def test_the_committed_table_is_of_the_plan_and_small():
    table = pd.read_parquet(train.TABLE)
    assert set(table.variant.unique()) <= set(PLAN) and train.TABLE.stat().st_size < 5 * 2**20
    assert {"steps", "batch", "samples", "scenes", "model", "trial"} <= set(table.attrs)
    found = verdicts.verdicts(PLAN, table)
    trained = found[found.variant.isin(table.variant.unique())]
    assert len(trained) and "not trained yet" not in set(trained.verdict)
