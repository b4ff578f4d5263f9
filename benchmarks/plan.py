"""What 1,600 prompts on five models take: operations counted on the true shapes, times and bytes from measured figures.

    python benchmarks/plan.py        # a CPU, a minute; no weights, no memory

One call of each transformer (standins.py) at its own size is traced without computing, and torch counts its operations,
attention included. Two cores' rate is the one of mask_cost.py's run. Writes the table in README.md, beside this file.
"""

import page
import pandas as pd
import standins
import torch
from torch.utils.flop_counter import FlopCounterMode

import massact_utils as mu
from massact_utils.models.load import format_bytes

PROMPTS = 1600
RATE = 7.4e12 / 16.43  # operations a second on two cores: mask_cost.py's transformer at 64 x 64 tokens, and its time
H100 = 0.4 * 989e12  # an assumption, not a measurement
# name -> (steps, passes of a step, image tokens, arguments of a call)
CALLS = {
    "flux.1-dev": (28, 1, 4096, lambda: flux(512) | dict(guidance=torch.ones(1))),
    "flux.1-schnell": (4, 1, 4096, lambda: flux(256)),
    "flux.2-klein-4b": (4, 1, 4096, lambda: packed(4096, 128, 512, 7680, 4)),
    "qwen-image": (50, 2, 83 * 83, lambda: qwen(83, 64)),
    "sana-1.5-1.6b": (20, 2, 1024, lambda: spatial(32, 32, 300, 2304)),
    "sd3.5-medium": (40, 2, 4096, lambda: spatial(16, 128, 333, 4096) | dict(pooled_projections=torch.ones(1, 2048))),
}


def packed(tokens, channels, text, width, axes):
    states = dict(hidden_states=torch.ones(1, tokens, channels), encoder_hidden_states=torch.ones(1, text, width))
    return states | dict(timestep=torch.ones(1), img_ids=torch.ones(tokens, axes), txt_ids=torch.ones(text, axes))


def flux(text):
    return packed(4096, 64, text, 4096, 3) | dict(pooled_projections=torch.ones(1, 768))


def qwen(side, text):
    states = dict(hidden_states=torch.ones(1, side * side, 64), encoder_hidden_states=torch.ones(1, text, 3584))
    mask = torch.ones(1, text, dtype=torch.long)
    return states | dict(timestep=torch.ones(1), encoder_hidden_states_mask=mask, img_shapes=[[(1, side, side)]])


def spatial(channels, side, text, width):
    states = dict(hidden_states=torch.ones(1, channels, side, side), encoder_hidden_states=torch.ones(1, text, width))
    return states | dict(timestep=torch.ones(1))


def operations(transformer, arguments) -> int:
    """Floating-point operations of one call, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter:
        transformer(**arguments, return_dict=False)
    return counter.get_total_flops()


def row(name: str) -> dict:
    """A model's line: an image's operations and time, and what 01 and 03 keep of it."""
    steps, passes, tokens, arguments = CALLS[name]
    pipe = standins.build(name, device="meta")
    with torch.device("meta"), torch.no_grad():
        given = {
            k: v.bfloat16() if getattr(v, "ndim", 0) > 1 and v.is_floating_point() else v
            for k, v in arguments().items()
        }
        total = operations(pipe.transformer, given) * steps * passes
    blocks = mu.blocks(pipe)
    like = torch.empty(1, 1, 1, dtype=torch.bfloat16).expand(1, tokens, blocks[0].width)
    kept = mu.ChannelStats(quantile=0.999).bytes_of(1, len(blocks) * steps, like)
    few = mu.Record(k=32).bytes_of(1, len(blocks) * min(steps, 5), like)
    return {
        "model": name,
        "blocks x steps x passes": f"{len(blocks)} x {steps} x {passes}",
        "operations": total,
        "two cores": total / RATE,
        "one H100, by arithmetic": total / H100,
        "one H100, measured": "no GPU so far",
        "01 keeps": kept,
        "03 keeps": few,
    }


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table in words."""
    words = {
        "operations": "{:.2g}".format,
        "two cores": lambda s: f"{s / 60:.0f} min",
        "one H100, by arithmetic": "{:.1f} s".format,
        "01 keeps": format_bytes,
        "03 keeps": format_bytes,
    }
    return table.assign(**{name: table[name].map(word) for name, word in words.items()})


if __name__ == "__main__":
    table = pd.DataFrame([row(name) for name in CALLS])
    five = table[table.model != "sd3.5-medium"].sum(numeric_only=True)
    together = pd.DataFrame([five.to_dict() | {"model": "the paper's five", "one H100, measured": "no GPU so far"}])
    print(shown(pd.concat([table, together]).fillna("")).to_string())
    hours = PROMPTS * five["one H100, by arithmetic"] / 3600
    tables, records = (format_bytes(PROMPTS * five[f"{notebook} keeps"]) for notebook in ("01", "03"))
    note = (
        f"An image; {PROMPTS} prompts are {hours:.0f} GPU hours, {tables} of 01's tables and {records} of 03's records."
    )
    print(note)
    page.write("plan", note, page.markdown(shown(pd.concat([table, together]).fillna(""))))
