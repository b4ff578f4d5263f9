"""Figure and ground: the experiment of docs/evidence/plan.toml, its arms and settings, and what they say of its claims.

stats = with_subspaces(results, pipe, choosing, stats, k, draws)           # to disruption.channel_statistics
data = disruption.run(results, pipe, prompts, arms(k, ks, draws), stats, others=choosing, world=world, subject=subject)
rows = run_transport(results, pipe, pairs, sets(stats, k, ks, draws), k, world=world, subject=subject)
found = findings(data, k) | transport_findings(rows, k)                    # id -> mean, low, high, n
"""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import xarray as xr

from ..measures import evaluators
from ..measures.evidence import arm_scores, paired_interval
from ..measures.masks import iou
from ..measures.transfer import by_attributes
from ..models.load import generate
from ..probes.attach import attach
from ..probes.channels import select_channels
from ..probes.subspaces import Moments, principal, rotated
from ..results.files import picture_name
from .disruption import channel_set, scores
from .transport import baseline_batch, run_settings, setting

SETS = ("top", "outside", "equal pattern energy", "principal", "principal of the rest", "rotated", "rest")
DRAWN = ("outside", "equal pattern energy", "rotated")
MATCHED = SETS[2:]  # they hold about as much as the top, or are all the others
EDITS = ("zero", "flat", "average level", "two values", "two values elsewhere")


def arms(k: int, ks, draws: int) -> pd.DataFrame:
    """Every set in every edit, and the top n for n in ks, a row each, with the columns of `disruption.arms`."""
    rows = [dict(which="untouched", k=0), dict(which="other noise", k=0)]
    for which, edit in product(SETS, EDITS):
        claimed = (which in DRAWN and edit in ("flat", "two values")) or (which, edit) == ("outside", "zero")
        rows += [dict(which=which, edit=edit, draw=i) for i in range(draws if claimed else 1)]
    rows += [dict(which="top", k=n, edit=edit) for n in ks for edit in ("zero", "flat", "two values")]
    return pd.DataFrame([dict(k=k, edit="zero", draw=0, layer="all", phase="all") | row for row in rows])


def with_subspaces(results, pipe, prompts, stats, k: int, draws: int, *, seed: int = 0, **call) -> xr.Dataset:
    """The statistics with the subspaces of SETS, of the same prompts: principal and "principal of the rest" (layer,
    channel, rank), rotated (of, draw, layer, channel, rank). Kept in the results' subspaces.nc.
    """
    if not results.path("subspaces.nc").exists():
        with attach(pipe, Moments(), branch="cond") as seen:
            for i in range(0, len(prompts), 8):
                generate(pipe, prompts[i : i + 8], seeds=seed + 50_000 + i, **call)
        moments, top = seen.dataset(), select_channels(scores(stats), k)
        turned = [xr.concat([rotated(moments[of], top, seed=seed + i) for i in range(draws)], "draw") for of in moments]
        bases = {"principal": principal(moments.state, k), "principal of the rest": principal(moments.state, k, top)}
        bases["rotated"] = xr.concat(turned, pd.Index([*moments], name="of"))
        results.save("subspaces", xr.Dataset(bases))
    return stats.merge(xr.load_dataset(results.path("subspaces.nc")))


def sets(stats: xr.Dataset, k: int, ks, draws: int, *, seed: int = 0) -> dict:
    """Every set for an edit of the pattern, and the top n for n in ks: (set, k, draw) -> ids, doses or a basis."""
    keys = [(name, k, i) for name in SETS for i in range(draws if name in DRAWN else 1)] + [("top", n, 0) for n in ks]
    edits = [SimpleNamespace(which=name, k=n, draw=i, edit="flat") for name, n, i in keys]
    return {key: channel_set(edit, stats, seed) for key, edit in zip(keys, edits, strict=True)}


def run_transport(
    results, pipe, pairs, sets: dict, k: int, *, world, subject, evaluator="toy", at_once=1, **call
) -> pd.DataFrame:
    """Every pair with the pattern of every set of `sets` carried, and of those of k that are not drawn the level and
    both: a row an image, with which, k, draw, part, pair and the columns of `transfer.by_attributes`.

    Pairs have source, target and asked, captions of a world. "arrives" is the mean of gain and along, "place IoU" that
    of the subject with the source's by `evaluators.subject_masks`, whose arguments are `subject`. `results` is a Run:
    only batches that are missing are computed. Raises what `evaluators.check_own` does, before the first image.
    """
    evaluators.check_own(world, evaluator)
    names = {key: "top" if key == ("top", k, 0) else repr(key) for key in sets}
    chosen = {names[key]: ids for key, ids in sets.items()}
    plan = [(key, "pattern") for key in sets]
    plan += [(key, part) for key in sets if key[0] not in DRAWN and key[1] == k for part in ("both", "level")]
    settings = [setting(channels=names[key], part=part) for key, part in plan]
    about = [(*key, part) for key, part in plan] + [(end, 0, 0, "") for end in ("target", "source")]
    about = pd.DataFrame(about, columns=["which", "k", "draw", "part"])

    def measure(batch):
        n = len(batch)
        start = batch.prompts, batch.seeds, chosen, lambda top: np.zeros((3 * n, *top.grid))  # no mask is used
        scene = baseline_batch(pipe, *start, **call)
        images = run_settings(pipe, scene, settings, **call) + scene.images["target"] + scene.images["source"]
        texts = [scene.prompts[name] * len(about) for name in ("source", "target")]
        read = by_attributes(images, *texts, scene.images["target"] * len(about), world, evaluator=evaluator)
        masks = evaluators.subject_masks(images, **subject)
        read["place IoU"] = iou(masks, np.tile(masks[-n:], (len(about), 1, 1)))
        rows = about.loc[about.index.repeat(n)].reset_index(drop=True).assign(pair=np.tile(batch.indices, len(about)))
        for i, row in rows[(rows.pair < 4) & (rows.draw == 0)].iterrows():
            arm = dict(set=row.which, k=row.k, part=row.part) if row.k else dict(beside=row.which)
            results.save(picture_name(pair=row.pair, **arm), images[i])
        return rows.join(read).assign(arrives=(read.gain + read.along) / 2)

    for batch in results.pending(pairs, at_once, name="figure"):
        results.add(batch, measure)
    return results.results("figure")


def findings(data: pd.DataFrame, k: int) -> dict:
    """What a run of `arms` says of the plan's claims in notebook 02: id -> (mean, low, high, prompts)."""

    def of(which, edit, measure="semantics lost", n=k):
        return arm_scores(data, measure, "image", which=which, edit=edit, k=n)

    least = min((of(which, "flat", "ground error") for which in MATCHED), key=np.mean)
    found = {f"two-values-{which.replace(' ', '-')}": [of(which, "two values")] for which in ("top", *MATCHED)}
    found |= {
        "map-does-not-draw": [of("top", "two values elsewhere", "place IoU")],
        "needed-less-than-others": [of("equal pattern energy", "flat"), of("top", "flat")],
        "flat-spares-the-ground": [least, of("top", "flat", "ground error")],
        "outside-hardly-missed": [of("outside", "zero")],
        "papers-share": [of("top", "zero", n=1)],
    }
    return {f"02.{name}": (*paired_interval(*both), data.image.nunique()) for name, both in found.items()}


def transport_findings(data: pd.DataFrame, k: int) -> dict:
    """What `run_transport` says of the plan's claims in notebook 04: id -> (mean, low, high, pairs)."""

    def of(which, part, measure):
        return arm_scores(data, measure, "pair", which=which, part=part, k=k)

    data = data.assign(selective=data.gain - data.along)
    best = max((of(which, "pattern", "selective") for which in MATCHED), key=np.mean)
    found = {
        "pattern-selective": [of("top", "pattern", "selective"), best],
        "more-arrives-than-rest": [of(which, "both", "arrives") for which in ("top", "rest")],
        "level-is-theirs": [of(which, "level", "along") for which in ("top", "rest")],
    }
    return {f"04.{name}": (*paired_interval(*both), data.pair.nunique()) for name, both in found.items()}
