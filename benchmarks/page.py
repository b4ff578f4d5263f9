"""Where figures go: the table between a benchmark's marks in README.md, and the hardware it ran on."""

import platform
from pathlib import Path

import torch

README = Path(__file__).with_name("README.md")


def hardware(device="cpu") -> str:
    """The processor by its trade name, and the threads used."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def markdown(table) -> str:
    """A DataFrame of finished strings as a Markdown table."""
    rows = [table.columns, ["---"] * table.shape[1], *table.values.tolist()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def write(name: str, note: str, table: str) -> None:
    """Put a note and a table between `<!-- name -->` and `<!-- end of name -->`."""
    before, rest = README.read_text().split(f"<!-- {name} -->\n")
    after = rest.split(f"<!-- end of {name} -->")[1]
    README.write_text(f"{before}<!-- {name} -->\n{note}\n\n{table}\n<!-- end of {name} -->{after}")
