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
    "mIoU top": "mIoU, top",
    "mIoU outside": "mIoU, outside",
}
LEVELS = {"peak": "The largest channel over the median was", "code": "The top's mIoU minus that of others was"}
NAMES = {  # of variants whose own name says too little
    "no-modulation": "no modulation",
    "scalar": "one gate and scale for all channels",
    "rotated": "Adam blind to axes",
    "rotated-scalar": "one gate and scale with Adam blind to axes",
    "gates-alone": "gates without shift and scale",
    "no-gates": "no gates",
    "gated-norm": "a gate after the norm",
    "bias": "a learned bias",
    "muon": "Muon for Adam",
}
PARTS = ["loss", "zero top", "zero outside", "zero bottom", "no pattern", "no level"]  # loss, and what edits add
VERDICTS = ("holds", "contradicted", "undecided", "did not train", "not measured")
RUN = ["variant", "seed"]
SEEDS = 3  # with fewer there is no range
WORSE = 1.1  # a loss over this share of the base's says nothing


# ---------------------------------------------------------------- numbers


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each variant and seed of origins.parquet: its loss and the plan's measures, nan where it has none.

    Concentration is taken at the layer where it is largest, all else as a mean over layers, and both as a mean over the
    noise levels.
    """
    ends = table[table.step == table.groupby(RUN, observed=True).step.transform("max")]
    ends = ends[~ends.measure.astype(str).str.startswith("course") & (ends.channel < 0)]
    rows = [numbers_of(part).rename(run) for run, part in ends.groupby(RUN, observed=True)]
    return pd.DataFrame(rows).rename_axis(index=RUN).join(lead(table))


def numbers_of(ends: pd.DataFrame) -> pd.Series:
    """The numbers of one training, from the rows of its end."""
    wide = ends.pivot_table(index=["sigma", "layer"], columns="measure", values="value", observed=True)
    values = {name: column.dropna() for name, column in wide.items()}
    loss, peaks = values["loss"], values["largest over median"].groupby("sigma").max()

    def mean(start):  # over layers and noise levels, then over measures whose name starts so
        means = [column.mean() for name, column in values.items() if name.startswith(start)]
        return float(np.mean(means)) if means else np.nan

    def largest(name):  # over layers
        return values[name].groupby("sigma").max().mean()

    def added(name):  # by an edit, as a share of the loss
        return ((values[f"loss: {name}"] - loss) / loss).mean() if f"loss: {name}" in values else np.nan

    row = {
        "loss": loss.mean(),
        "peak": np.log2(peaks.mean()),
        "kurtosis": np.log2(largest("kurtosis")),
        "axis": largest("energy in the top"),
        "direction": largest("largest eigenvalue"),
        "zero top": added("zero, top"),
        "zero outside": float(np.nanmean([added(f"zero, outside {i}") for i in range(8)])),
        "zero bottom": added("zero, bottom"),
        "no pattern": added("no pattern, top"),
        "no level": added("no level, top"),
        "mIoU top": mean("mIoU (oracle), top"),
        "mIoU outside": mean("mIoU (oracle), outside"),
        "level": mean("level of top"),
        "constant": mean("constant of top"),
        "gate": mean("gate: rank correlation"),
        "gate's largest": added("gate's largest"),
        "others of the gate": (mean("loss: others of the gate") - loss.mean()) / loss.mean(),
        "growth": np.log2(peaks.iloc[0] / peaks.iloc[-1]),
    }
    row["need"] = row["zero top"] - row["zero outside"]
    row["pattern"] = row["no pattern"] - row["no level"]
    row["code"] = row["mIoU top"] - row["mIoU outside"]
    return pd.Series(row)


def lead(table: pd.DataFrame) -> pd.Series:
    """Whether the gate comes before the channel, in the middle layer; (variant, seed), nan where there is no gate.

    Of the 12 channels that end largest, those count that pass twice the median channel for good. The share whose gate
    did so before them, minus the share whose gate did so after them or never. Where fewer than half of the gates ever
    do, there is no order to tell, and it is nan.
    """
    channel, gate = names = ["course: activation of top", "course: gate of top"]
    rows = table[table.measure.isin(names)].astype({"variant": str, "measure": str})
    wide = rows.pivot_table(index=[*RUN, "channel", "step"], columns="measure", values="value").reindex(columns=names)
    wide = wide[wide[gate].groupby(level=RUN).transform("any").astype(bool)]
    steps = wide.index.get_level_values("step").to_series(index=wide.index)
    under = wide.lt(1) | wide.isna()  # gates start at zero: until they open there is no ratio
    last = under.mul(steps + 1, axis=0).groupby(level=[*RUN, "channel"]).max()
    last = last.where(last.le(steps.groupby(level=[*RUN, "channel"]).max(), axis=0), np.inf)  # else it never passes
    passed = last[np.isfinite(last[channel])]
    ordered = np.isfinite(passed[gate]).groupby(level=RUN).mean() >= 0.5
    return np.sign(passed[channel] - passed[gate]).groupby(level=RUN).mean().where(ordered).rename("lead")


def at_equal_loss(table: pd.DataFrame) -> pd.DataFrame:
    """The peak of each variant minus the base's (mean over shared seeds): at equal samples, and where each first had
    the loss with which the worse of the two ended; both at sigma 0.5, from what was recorded every 25 steps.
    """
    course = table[table.measure.isin(["course: loss", "course: largest over median"])]
    course = course.groupby([*RUN, "step", "measure"], observed=True).value.max().unstack()
    course.columns = ["peak", "loss"]
    course = course.assign(peak=np.log2(course.peak), loss=course.loss.groupby(level=RUN, observed=True).cummin())
    rows = []
    for (variant, seed), own in course.groupby(RUN, observed=True):
        if variant == "base" or ("base", seed) not in course.index.droplevel("step"):
            continue
        own, base = own.droplevel([0, 1]), course.loc["base", seed]
        worse = max(own.loss.iloc[-1], base.loss.iloc[-1])
        equal = [part.peak[part.loss <= worse].iloc[0] for part in (own, base)]
        samples = own.peak.iloc[-1] - base.peak.iloc[-1]
        rows.append({"variant": variant, "equal samples": samples, "equal loss": equal[0] - equal[1]})
    return pd.DataFrame(rows, columns=["variant", "equal samples", "equal loss"]).groupby("variant").mean()


# ---------------------------------------------------------------- verdicts


def verdicts(plan: dict, table: pd.DataFrame) -> pd.DataFrame:
    """Each claim of a plan (variant -> row) with its range over seeds.

    A verdict is `evidence.verdict` of the range; with fewer than three seeds there is no range, and it is undecided.
    "did not train": an intervention's loss is more than 10 % above the base's of the same seeds. "not trained yet":
    variant or base is missing. "not measured": no seed has the measure, as where there is no gate.
    """
    rows, at_all_sigmas = [], numbers(table)
    for variant, planned in plan.items():
        at = numbers(table[table.sigma == planned["sigma"]]) if "sigma" in planned else at_all_sigmas
        comparable = not (planned.get("other_task") or planned["question"] == "architecture")
        for claim in planned["claims"]:
            values, loss = compared(at, variant, claim)
            row = {"variant": variant, "question": planned["question"], "loss over base's": loss} | claim
            row |= {"value": values.mean(), "low": values.min(), "high": values.max(), "seeds": len(values)}
            if not len(values):
                trained = {variant, "base"} <= set(at.index.get_level_values("variant"))
                row["verdict"] = "not measured" if trained else "not trained yet"
            elif comparable and loss > WORSE:
                row["verdict"] = "did not train"
            else:
                interval = (row["low"], row["high"]) if len(values) >= SEEDS else (None, None)
                row["verdict"] = evidence.verdict(*interval, claim["threshold"], claim["side"])
            rows.append(row)
    return pd.DataFrame(rows)


def compared(table, variant, claim) -> tuple[pd.Series, float]:
    """A claim's measure of every seed that the variant shares with the base, and its loss as a share of the base's."""
    if not {variant, "base"} <= set(table.index.get_level_values("variant")):
        return pd.Series(dtype=float), np.nan
    own, base = (table.xs(name).dropna(subset=[claim["measure"]]) for name in (variant, "base"))
    shared = own.index.intersection(base.index)
    own, base = own.loc[shared], base.loc[shared]
    values = own[claim["measure"]]
    if claim["against"] == "ratio":
        values = values / base[claim["measure"]]
    elif claim["against"] == "base":
        values = values - base[claim["measure"]]
    return values, own.loss.mean() / base.loss.mean() if len(shared) else np.nan


def sentence(rows: pd.DataFrame) -> str:
    """What became of some claims, in one sentence: how many hold and which, and so for every other verdict."""
    trained = rows[rows.verdict != "not trained yet"]
    if trained.empty:
        return "No variant of this question is trained yet."
    claims = trained.variant.value_counts()
    names = [NAMES.get(row.variant, row.variant) for row in trained.itertuples()]
    several = [f" ({row.measure})" if claims[row.variant] > 1 else "" for row in trained.itertuples()]
    names = [name + more for name, more in zip(names, several, strict=True)]
    parts = []
    for verdict in VERDICTS:
        group = [name for name, own in zip(names, trained.verdict, strict=True) if own == verdict]
        verb = "hold" if verdict == "holds" and len(group) > 1 else verdict
        verb = f"left out, for a loss over {WORSE:.0%} of the base's" if verdict == "did not train" else verb
        parts += [f"{len(group)} {verb}: {', '.join(group)}"] if group else []
    few = f" A verdict takes {SEEDS} seeds." if trained.seeds.between(1, SEEDS - 1).any() else ""
    return f"Of {len(trained)} claim{'s' * (len(trained) > 1)}, {'; '.join(parts)}.{few}"


def adam_or_modulation(rows: pd.DataFrame) -> str:
    """What the four corners of the two-by-two design say together, in one sentence or two."""
    peaks = rows[rows.measure == "peak"].set_index("variant")
    names = ("rotated", "scalar", "rotated-scalar")
    if not {*(corners := [peaks.verdict.get(name) for name in names])} <= {"holds", "contradicted"}:
        return "The trainings do not yet tell Adam and modulation apart."
    adam, modulation, both = (verdict == "holds" for verdict in corners)
    left = [f"{2 ** peaks.value[name]:.0%}" for name in names]
    text = (
        f"Of the base's peak {left[0]} was left where the optimiser saw rotated axes, {left[1]} where modulation "
        f"scaled all channels alike, and {left[2]} with both. "
    )
    if adam == modulation:
        return text + f"So the peak needs {'both' if adam else 'one of the two' if both else 'neither'}."
    main, other = ("Adam's axes", "modulation") if adam else ("modulation", "Adam's axes")
    more = bool(peaks.high["rotated-scalar"] < peaks.low["rotated" if adam else "scalar"])
    verb, adds = ("matter", "adds") if adam else ("matters", "add")
    return f"{text}So {main} {verb} most; {other} {adds} {'less' if more else 'nothing that shows'}."


# ---------------------------------------------------------------- for the notebook


def check_switch(switch: str, live_steps: int, plan: dict, trained) -> None:
    """Raise ValueError for a variant that is not in the plan, for a live training that is too short to see anything, or
    for a recorded course that is not in the table; `trained` holds the variants that are, "base" among them.
    """
    if "base" not in trained:
        raise ValueError("the table has no base to compare with; run `python -m training origins base`")
    if switch not in plan:
        raise ValueError(f"switch {switch!r} is no variant of the plan, {', '.join(plan)}")
    if live_steps and live_steps < 25:
        raise ValueError(f"live_steps = {live_steps} is not possible; allowed: 0, or 25 and more")
    if not live_steps and switch not in trained:
        raise ValueError(f"{switch!r} has no recorded course; set live_steps=100")


def recipe(table: pd.DataFrame, plan: dict) -> str:
    """How the trainings of a table were made, in two lines."""
    made, seeds = table.attrs, table.groupby("variant", observed=True).seed.nunique()
    each = " to ".join(map(str, sorted({seeds.min(), seeds.max()})))
    lines = [f"{len(seeds)} of {len(plan)} variants are trained, {each} seeds each, in"]
    lines += [f"{made['steps']:,} steps of {made['batch']} samples from {made['scenes']:,} scenes"]
    return "\n".join(lines + ["A SHORT TRIAL: it shows that all works, and decides nothing."] * made["trial"])


def level(numbers: pd.DataFrame, variant: str, measure: str) -> str:
    """A variant's measure, its mean over seeds, in words: the peak as a multiple, which it is a logarithm of."""
    value = numbers.loc[variant, measure].mean()
    return f"{2**value:.1f}" if measure == "peak" else f"{value:z.2f}"


def said(row) -> str:
    """What was found of one claim, in levels where it is of the peak."""
    ends, over = (row.value, row.low, row.high), f"over {row.seeds} seed{'s' if row.seeds > 1 else ''}"
    name = NAMES.get(row.variant, row.variant)
    if row.measure == "peak" and row.against == "base":
        each = [f"{2**x:.0%}" for x in ends]
        return f"With {name} the largest channel was {each[0]} of the base's ({each[1]} to {each[2]} {over})."
    if row.measure == "peak":
        each = [f"{2**x:.0f}" for x in ends]
        return f"In {name} the largest channel was {each[0]} times the median ({each[1]} to {each[2]} {over})."
    each = [f"{x:z.2f}" for x in ends]
    what = LEVELS.get(row.measure, f"{LABELS[row.measure][0].upper()}{LABELS[row.measure][1:]} was")
    return f"{what} {each[0]} in {name} ({each[1]} to {each[2]} {over})."


def box(rows: pd.DataFrame, which: list[tuple[str, str]]) -> str:
    """A line of Markdown for each claim of `which`, (variant, measure): what was claimed, found, and its verdict."""
    rows = rows.set_index(["variant", "measure"], drop=False)
    found = [rows.loc[one] for one in which]
    return "\n".join(f"- *{row.explanation}* {said(row)} {row.verdict.capitalize()}." for row in found if row.seeds)


def file_claims(run, rows: pd.DataFrame) -> None:
    """File the verdicts on what is trained as claims of a run, each with the range over its seeds."""
    for row in rows[rows.seeds > 0].itertuples():
        few = row.verdict == "did not train" or row.seeds < SEEDS
        of = row.variant + {"base": " minus base", "ratio": " over base"}.get(row.against, "")
        label = f"{LABELS[row.measure]}, {of}, {row.seeds} seed{'s' if row.seeds > 1 else ''}"
        words = dict(owner=row.owner if isinstance(row.owner, str) else "ours", measure=label, side=row.side)
        words["sentence"] = row.explanation + f" Class: {row.variant}." * (row.question == "architecture")
        words |= dict(threshold=row.threshold, note=row.verdict if few else said(row))
        run.claim(
            f"05.{row.variant}-{row.measure}", row.value, *((None, None) if few else (row.low, row.high)), **words
        )
