"""What the table of the small trainings says of the plan: numbers of each variant and seed, ranges, verdicts."""

import numpy as np
import pandas as pd

from massact_utils.measures import evidence

LABELS = {  # the plan's measures, and what they are made of
    "peak": "largest over median, log2",
    "kurtosis": "kurtosis, log2",
    "axis": "energy in the top 12",
    "direction": "energy in one direction",
    "need": "loss added, top minus outside",
    "code": "mIoU, top minus outside",
    "pattern": "loss added, no pattern minus no level",
    "level": "level's share of the top's energy",
    "constant": "constant's share of the top's energy",
    "gate": "rank correlation with the gate",
    "growth": "growth toward the image, log2",
    "lead": "gate first minus channel first",
    "moved": "moved with the gate minus stayed",
    "mIoU top": "mIoU, top",
    "mIoU outside": "mIoU, outside",
}
SHORT = LABELS | {  # of the architectures' claims, for a narrow place
    "peak": "largest over median, log2",
    "need": "zeroing the top costs more",
    "code": "the top parts the subject better",
    "pattern": "the pattern is needed more than the level",
    "gate": "rank correlation with the gate",
    "lead": "the gate is large first",
}
PARTS = ["loss", "zero top", "zero outside", "zero bottom", "no pattern", "no level"]  # loss, and what edits add
VERBS = {  # of one claim, of several
    "holds": ("holds", "hold"),
    "contradicted": ("is contradicted", "are contradicted"),
    "undecided": ("is undecided", "are undecided"),
    "did not train": ("did not train", "did not train"),
    "not measured": ("is not measured", "are not measured"),
}
SEEDS = 3  # with fewer there is no range
WORSE = 1.1  # a loss over this share of the base's says nothing


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each variant and seed of origins.parquet: its loss and the plan's measures, nan where it has none.

    Concentration is taken at the layer where it is largest, all else as a mean over layers, and both as a mean over the
    noise levels.
    """
    ends = table[table.step == table.groupby(["variant", "seed"], observed=True).step.transform("max")]
    ends = ends[~ends.measure.astype(str).str.startswith("course") & (ends.channel < 0)]
    rows = [one(part).rename(key) for key, part in ends.groupby(["variant", "seed"], observed=True)]
    return pd.DataFrame(rows).rename_axis(index=["variant", "seed"]).join(lead(table))


def lead(table: pd.DataFrame) -> pd.Series:
    """Whether the gate comes before the channel, in the middle layer; (variant, seed), nan where there is no gate.

    Of the 12 channels that end largest, those count that pass twice the median channel for good. The share whose gate
    did so before them, minus the share whose gate did so after them or never.
    """
    names, run = ["course: activation of top", "course: gate of top"], ["variant", "seed"]
    rows = table[table.measure.isin(names)].astype({"variant": str, "measure": str})
    wide = rows.pivot_table(index=[*run, "channel", "step"], columns="measure", values="value").reindex(columns=names)
    wide = wide[wide[names[1]].groupby(level=run).transform("any").astype(bool)]
    steps = wide.index.get_level_values("step").to_series(index=wide.index)
    under = wide.lt(1) | wide.isna()  # gates start at zero: until they open there is no ratio
    last = under.mul(steps + 1, axis=0).groupby(level=[*run, "channel"]).max()
    last = last.where(last.le(steps.groupby(level=[*run, "channel"]).max(), axis=0), np.inf)  # else it never passes
    passed = last[np.isfinite(last[names[0]])]
    first = np.sign(passed[names[0]] - passed[names[1]])
    return first.groupby(level=run).mean().rename("lead")


def one(part: pd.DataFrame) -> pd.Series:
    """The numbers of one training, from the rows of its end."""
    wide = part.pivot_table(index=["sigma", "layer"], columns="measure", values="value", observed=True)
    each = {name: column.dropna() for name, column in wide.items()}
    most = {
        name: each[name].groupby("sigma").max() for name in ("largest over median", "kurtosis", "energy in the top")
    }
    loss = each["loss"]

    def added(name):  # by an edit, as a share of the loss
        return ((each[f"loss: {name}"] - loss) / loss).mean()

    def over_draws(before):
        values = [column.mean() for name, column in each.items() if name.startswith(before)]
        return float(np.mean(values)) if values else np.nan

    outside = float(np.mean([added(f"zero, outside {i}") for i in range(8) if f"loss: zero, outside {i}" in each]))
    found = {
        "loss": loss.mean(),
        "peak": np.log2(most["largest over median"].mean()),
        "kurtosis": np.log2(most["kurtosis"].mean()),
        "axis": most["energy in the top"].mean(),
        "direction": each["largest eigenvalue"].groupby("sigma").max().mean(),
        "zero top": added("zero, top"),
        "zero outside": outside,
        "zero bottom": added("zero, bottom"),
        "no pattern": added("no pattern, top"),
        "no level": added("no level, top"),
        "need": added("zero, top") - outside,
        "mIoU top": each["mIoU (oracle), top"].mean(),
        "mIoU outside": over_draws("mIoU (oracle), outside"),
        "level": each["level of top"].mean(),
        "constant": each["constant of top"].mean(),
        "gate": each["gate: rank correlation"].mean() if "gate: rank correlation" in each else np.nan,
        "gate's largest": added("gate's largest") if "loss: gate's largest" in each else np.nan,
        "others of the gate": ((over_draws("loss: others of the gate") - loss.mean()) / loss.mean()),
        "moved": (each["top moved with the gate"] - each["top kept since half"]).mean(),
    }
    peaks = most["largest over median"]
    found["growth"] = np.log2(peaks.iloc[0] / peaks.iloc[-1])
    found["pattern"] = found["no pattern"] - found["no level"]
    found["code"] = found["mIoU top"] - found["mIoU outside"]
    return pd.Series(found)


def verdicts(plan: dict, table: pd.DataFrame) -> pd.DataFrame:
    """Each claim of a plan (variant -> row) with its range over seeds.

    A verdict is `evidence.verdict` of the range; with fewer than three seeds there is no range, and it is undecided.
    "did not train": an intervention's loss is more than 10 % above the base's of the same seeds. "not trained yet":
    variant or base is missing. "not measured": no seed has the measure, as where there is no gate.
    """
    rows, everywhere = [], numbers(table)
    for variant, row in plan.items():
        found = numbers(table[table.sigma == row["sigma"]]) if "sigma" in row else everywhere
        for claim in row["claims"]:
            values, loss = compared(found, variant, claim)
            made = {"variant": variant, "question": row["question"], "loss over base's": loss} | claim
            made |= {"value": values.mean(), "low": values.min(), "high": values.max(), "seeds": len(values)}
            if not len(values):
                trained = {variant, "base"} <= set(found.index.get_level_values("variant"))
                made["verdict"] = "not measured" if trained else "not trained yet"
            elif loss > WORSE and not (row.get("other_task") or row["question"] == "architecture"):
                made["verdict"] = "did not train"
            else:
                ends = (made["low"], made["high"]) if len(values) >= SEEDS else (None, None)
                made["verdict"] = evidence.verdict(*ends, claim["threshold"], claim["side"])
            rows.append(made)
    return pd.DataFrame(rows)


def compared(found, variant, claim) -> tuple[pd.Series, float]:
    """A claim's measure of every seed that the variant shares with the base, and its loss as a share of the base's."""
    known = found.index.get_level_values("variant")
    if variant not in known or "base" not in known:
        return pd.Series(dtype=float), np.nan
    mine, base = (found.xs(name).dropna(subset=[claim["measure"]]) for name in (variant, "base"))
    both = mine.index.intersection(base.index)
    mine, base = mine.loc[both], base.loc[both]
    values = mine[claim["measure"]] - (base[claim["measure"]] if claim["against"] == "base" else 0)
    return values, mine.loss.mean() / base.loss.mean() if len(both) else np.nan


def at_equal_loss(table: pd.DataFrame) -> pd.DataFrame:
    """The peak of each variant minus the base's (mean over shared seeds): at equal samples, and where each first had
    the loss with which the worse of the two ended; both at sigma 0.5, from what was recorded every 25 steps.
    """
    course = table[table.measure.isin(["course: loss", "course: largest over median"])]
    course = course.groupby(["variant", "seed", "step", "measure"], observed=True).value.max().unstack()
    rows = []
    for (variant, seed), mine in course.groupby(["variant", "seed"], observed=True):
        if variant == "base" or ("base", seed) not in course.index.droplevel("step"):
            continue
        mine, base = mine.droplevel([0, 1]), course.loc["base", seed]
        mine, base = (part.assign(loss=part["course: loss"].cummin()) for part in (mine, base))
        worse = max(mine.loss.iloc[-1], base.loss.iloc[-1])
        ends = [np.log2(part["course: largest over median"].iloc[-1]) for part in (mine, base)]
        equal = [np.log2(part[part.loss <= worse]["course: largest over median"].iloc[0]) for part in (mine, base)]
        rows.append({"variant": variant, "equal samples": ends[0] - ends[1], "equal loss": equal[0] - equal[1]})
    columns = ["variant", "equal samples", "equal loss"]
    return pd.DataFrame(rows, columns=columns).groupby("variant").mean()


def told(rows: pd.DataFrame) -> pd.DataFrame:
    """Verdicts of the variants that are trained, as a table to read: claim, range over seeds, loss and verdict."""
    rows = rows[rows.verdict != "not trained yet"]
    made = pd.DataFrame(index=rows.variant)
    made["explanation"] = rows.explanation.values
    made["claimed"] = [f"{row.measure} {row.side} {row.threshold:g}" for row in rows.itertuples()]
    made["found"] = [_range(row) for row in rows.itertuples()]
    made["seeds"] = rows.seeds.values
    made["loss over base's"] = rows["loss over base's"].round(2).values
    made["verdict"] = rows.verdict.values
    return made


def sentence(rows: pd.DataFrame) -> str:
    """What we now know of some claims, in one sentence: how many hold and which, and so for every other verdict."""
    trained = rows[rows.verdict != "not trained yet"]
    if trained.empty:
        return "What we now know: nothing yet. No variant of this question is trained."
    often, parts = trained.variant.value_counts(), []
    for verdict, verbs in VERBS.items():
        found = trained[trained.verdict == verdict]
        names = [row.variant + (f" ({row.measure})" if often[row.variant] > 1 else "") for row in found.itertuples()]
        parts += [f"{len(names)} {verbs[len(names) > 1]}: {', '.join(names)}"] if names else []
    claims = "claim" if len(trained) == 1 else "claims"
    few = f" A verdict takes {SEEDS} seeds." if trained.seeds.between(1, SEEDS - 1).any() else ""
    return f"What we now know: of {len(trained)} {claims}, {'; '.join(parts)}.{few}"


def adam_or_modulation(rows: pd.DataFrame) -> str:
    """What the four corners of the two-by-two design say together, in one sentence."""
    peaks = rows[rows.measure == "peak"].set_index("variant")
    corners = [peaks.verdict.get(name) for name in ("rotated", "scalar", "rotated-scalar")]
    if not {*corners} <= {"holds", "contradicted"}:
        return "What we now know: the trainings do not yet tell Adam and modulation apart."
    adam, modulation, both = (word == "holds" for word in corners)
    if adam and modulation:
        found = "massive channels need both, Adam's axes and modulation's"
    elif adam or modulation:
        needed, other = ("Adam", "modulation") if adam else ("modulation", "Adam")
        found = f"massive channels need {needed}'s axes, and not {other}'s"
        if peaks.high["rotated-scalar"] < peaks.low["rotated" if adam else "scalar"]:
            found += f"; without {needed}'s, {other}'s still make them larger"
    elif both:
        found = "either axes are enough for massive channels, Adam's or modulation's"
    else:
        found = "massive channels need neither Adam's axes nor modulation's"
    return f"What we now know: {found}."


def _range(row) -> str:
    """The mean over seeds, and the smallest and largest."""
    if not row.seeds:
        return "no number"
    numbers = (f"{round(x, 2) + 0.0:.2f}" for x in (row.value, row.low, row.high))
    return "{} ({} to {})".format(*numbers)
