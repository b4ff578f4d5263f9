"""Disruption: what every edit of a few channels costs, all arms of a prompt from one noise.

table = arms(k=12, width=192, layers=["0", "4", "7"], draws=8)      # which channels, edit, draw, layer, phase
stats = channel_statistics(results, pipe, choosing, seed=0)         # of prompts that are not measured
data = run(results, pipe, measured, table, stats, others=choosing)  # a row an image
"""

from itertools import product

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image

from ..measures import evaluators
from ..measures.evidence import arm_scores
from ..measures.images import compare, error_outside
from ..measures.masks import coverage, iou
from ..models.load import generate
from ..probes.arms import Arm
from ..probes.attach import attach
from ..probes.channels import ChannelStats, matched_channels, select_channels
from ..probes.disrupt import Disrupt
from ..probes.record import Record
from ..results.files import picture_name

PATTERN = ("flat", "two values", "two values elsewhere")  # edits that leave a level as it is
EDITS = ("zero, same norm", "flat", "average level", "flat at average level", "shuffled")  # besides zero
PHASES = ("early", "middle", "late")  # thirds of the steps


def arms(k: int, width: int, layers, draws: int) -> pd.DataFrame:
    """All arms, a row each: which channels (`select_channels`' names, or untouched), k, edit, draw, layer ("all" or a
    number as text) and phase ("all" or one of PHASES).
    """
    sizes = sorted({n for n in (1, 4, k, 32) if n <= width // 2})
    rows = [dict(which="untouched", k=0)]
    rows += [dict(which=which, k=n) for which in ("top", "bottom") for n in sizes]
    rows += [dict(which="outside", k=n) for n in sizes if n != k]
    rows += [dict(which="outside", edit=edit, draw=i) for edit in ("zero", "flat") for i in range(draws)]
    rows += [dict(which="top", edit=edit) for edit in EDITS]
    rows += [dict(which="outside", edit=edit) for edit in EDITS if edit != "flat"]
    rows += [dict(which="top", phase=phase) for phase in PHASES]
    rows += [dict(which=which, layer=layer) for which in ("top", "outside") for layer in layers]
    return pd.DataFrame([dict(k=k, edit="zero", draw=0, layer="all", phase="all") | row for row in rows])


def channel_statistics(results, pipe, prompts, *, seed: int = 0, **call) -> xr.Dataset:
    """What channels are chosen by, means over prompts: mean_abs, mean_sq, level_sq (step, layer, channel), and level
    (branch, step, layer, channel). Kept in the results' channels.nc, and read from there the next time.
    """
    if not results.path("channels.nc").exists():
        with attach(pipe, ChannelStats(), branch="both") as stats:
            for i in range(0, len(prompts), 8):
                generate(pipe, prompts[i : i + 8], seeds=seed + 50_000 + i, **call)
        table = stats.dataset().assign(level_sq=lambda table: table["mean"] ** 2)
        cond = table[["mean_abs", "mean_sq", "level_sq"]].sel(branch="cond", drop=True).mean("image")
        results.save("channels", cond.assign(level=table["mean"].mean("image")))
    return xr.load_dataset(results.path("channels.nc"))


def scores(stats: xr.Dataset) -> xr.DataArray:
    """By what channels are ranked: (layer, channel)."""
    return stats.mean_abs.mean("step").astype(float)


def phases(stats: xr.Dataset) -> dict:
    """The steps of each phase."""
    return dict(zip(PHASES, np.array_split(stats.step.values, len(PHASES)), strict=True))


def run(
    results,
    pipe,
    prompts,
    table,
    stats,
    *,
    others,
    n_seeds=1,
    at_once=16,
    evaluator="toy",
    world=None,
    subject=None,
    seed=0,
    **call,
) -> pd.DataFrame:
    """Every arm of a table with every prompt and seed: a row an image, its arm, `removed` (the share of energy by which
    the state was moved) and its measures against the untouched image of the same noise.

    Measures are those of `images.compare`, by an evaluator and with `others` for chance, "semantics lost" (the drop of
    alignment; 1 is down to chance), and with a world, whose captions the prompts are, the words that are read right.
    Pictures of the first four prompts are saved for the explorer. `results` is a Run: only batches that are missing are
    computed. Raises what `evaluators.check_own` does, before the first image.

    With `subject`, the arguments of `evaluators.subject_masks`, the untouched pictures' subjects are those of "two
    values", and there is "place IoU", of the subject with where it should be, and "ground error" (`error_outside`).
    """
    if world:
        evaluators.check_own(world, evaluator)

    def measure(batch):
        rows = pd.DataFrame(dict(prompt=batch.prompts, seed=batch.seeds, image=batch.indices))
        rows = pd.concat([rows.assign(seed=rows.seed + 200_000 * i) for i in range(n_seeds)])
        rows = rows.merge(table, how="cross")
        masks = None if subject is None else subjects(pipe, rows[rows.which == "untouched"], subject, **call)
        parts = [
            generate_arms(pipe, rows[i : i + at_once], stats, seed, masks, **call) for i in range(0, len(rows), at_once)
        ]
        images = [image for made, _ in parts for image in made]
        rows["removed"] = np.concatenate([share for _, share in parts])
        intact = {rows.seed[i]: images[i] for i in rows.index[rows.which == "untouched"]}
        _save_pictures(results, rows, images, seed)
        texts, intact = rows.prompt.tolist(), [intact[i] for i in rows.seed]
        measures = compare(images, intact, texts, others=others, evaluator=evaluator)
        right = [evaluators.attributes_right(images, texts, world, evaluator=evaluator)] if world else []
        if masks is not None:
            before = np.stack([masks[i] for i in rows.seed])
            wanted = [moved(m, elsewhere(m)) if "elsewhere" in e else m for m, e in zip(before, rows.edit, strict=True)]
            after = coverage(evaluators.subject_masks(images, **subject), before.shape[1:]) > 0.5
            rows["place IoU"] = iou(after, wanted)
            rows["ground error"] = error_outside(images, intact, before)
        return rows.join([measures, *right])

    for batch in results.pending(prompts, size=max(1, at_once // len(table))):
        results.add(batch, measure)
    data = results.results().rename(columns={"low_error": "layout lost", "high_error": "detail lost"})
    intact = data[data.which == "untouched"].set_index("seed")
    lost = data.seed.map(intact.alignment) - data.alignment
    data["semantics lost"] = lost / (intact.alignment - intact.chance).mean()
    return data.join(evaluators.by_topic(data, world)) if world else data


def subjects(pipe, rows: pd.DataFrame, subject: dict, **call) -> dict:
    """The subject's tokens in the untouched picture of every row: noise's seed -> (H, W) bool."""
    with attach(pipe, Record(k=1), layers=[0], steps=[0]) as record:
        images = generate(pipe, rows.prompt.tolist(), seeds=rows.seed.tolist(), **call)
    return dict(zip(rows.seed, coverage(evaluators.subject_masks(images, **subject), record.grid) > 0.5, strict=True))


def elsewhere(mask) -> tuple[int, int]:
    """By how many tokens (down, right) a mask (H, W) bool is moved to meet its old place least, the shortest way, with
    none of it lost.

    >>> elsewhere([[True, False, False], [False, False, False]])
    (0, 1)
    """
    mask = np.asarray(mask, bool)
    if not mask.any():
        return 0, 0
    ranges = [range(-x.min(), n - x.max()) for x, n in zip(mask.nonzero(), mask.shape, strict=True)]
    return min(product(*map(list, ranges)), key=lambda way: ((mask & moved(mask, way)).sum(), np.hypot(*way)))


def moved(mask, way: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) bool moved by so many tokens (down, right), of which none leave the grid."""
    return np.roll(mask, way, (0, 1))


def generate_arms(pipe, rows: pd.DataFrame, stats: xr.Dataset, seed: int = 0, masks: dict | None = None, **call):
    """Images with an arm in every row, and by what share of energy each was moved.

    Rows have a prompt, the noise's seed and what `arms` has; `seed` is that of the first draw of channels, `masks` are
    those of `subjects`.
    """
    steps = phases(stats)
    noise, edits = rows.seed + 100_000 * (rows.which == "other noise"), []
    for row in rows.itertuples():
        when = stats.step.isin(steps.get(row.phase, stats.step))
        where = stats.layer.astype(str).isin([row.layer]) | (row.layer == "all")
        channels = channel_set(row, stats, seed)
        edit = dict(edit=row.edit, dose=1.0 * (when & where), seed=row.draw, levels=stats.level)
        if masks is not None:
            edit |= dict(mask=masks[row.seed])
        if row.edit == "two values elsewhere":
            edit |= dict(edit="two values", offset=elsewhere(masks[row.seed]))
        edits.append(None if channels is None else Arm(channels, **edit))
    probe = Disrupt(arms=edits)
    with attach(pipe, probe):
        images = generate(pipe, rows.prompt.tolist(), seeds=noise.tolist(), **call)
    return images, probe.changed()


def channel_set(arm, stats: xr.Dataset, seed: int = 0):
    """The ids of an arm in every layer, a dose of every channel or a basis; None for an arm without channels.

    Subspaces are those of `figure_ground.with_subspaces`.
    """
    if arm.which == "equal pattern energy":
        pattern, top = (stats.mean_sq - stats.level_sq).mean("step"), select_channels(scores(stats), arm.k)
        layers = zip(pattern, top, strict=True)  # all with one seed, so that channels are drawn in one order
        each = [matched_channels(*layer, seed=seed + arm.draw) for layer in layers]
        return xr.concat(each, "layer", coords="minimal", compat="override")
    if arm.which == "rotated":
        return stats.rotated.sel(of="pattern" if arm.edit in PATTERN else "state", draw=arm.draw, drop=True)
    if arm.which in stats:
        return stats[arm.which]
    if arm.which == "rest":
        return select_channels(scores(stats), stats.sizes["channel"])[:, arm.k :]
    return select_channels(scores(stats), arm.k, which=arm.which, seed=seed + arm.draw) if arm.k else None


def of(table, which, edit="zero", measure="semantics lost", *, k, layer="all", phase="all") -> np.ndarray:
    """A measure of an arm in the table of `run`: (prompt), a mean over seeds, or (draw, prompt, 1) of a set that was
    drawn many times. Raises KeyError for an arm that is not in the table.
    """
    k = 0 if which in ("untouched", "other noise") else k
    return arm_scores(table, measure, "image", k=k, which=which, edit=edit, layer=layer, phase=phase)


def pictures(results, arms: dict, k: int) -> dict:
    """Pictures of the first prompts by arm {name: (which, edit)}, as `plots.contact_sheet` takes them."""
    ways = {
        name: dict(set=which, k=k, edit=edit) if which != "untouched" else dict(beside=which)
        for name, (which, edit) in arms.items()
    }
    n = len([*results.folder.glob("explorer/*beside=untouched*")])
    files = {(str(i), name): picture_name(prompt=i, **way) for i in range(n) for name, way in ways.items()}
    return {at: Image.open(results.path(file)).convert("RGB") for at, file in files.items()}


def _save_pictures(results, rows, images, seed: int) -> None:
    first = rows.query("image < 4 and seed < @seed + 4 and draw == 0 and layer == 'all' and phase == 'all'")
    for i, row in first.iterrows():
        picture = images[i].copy()  # what is measured keeps its size
        picture.thumbnail((256, 256))
        arm = dict(set=row.which, k=row.k, edit=row.edit) if row.k else dict(beside=row.which)
        results.save(picture_name(prompt=row.image, **arm), picture)
