"""Reading: what probes that read have in common: one schedule, and no half of a generation."""

import math


class Reading:
    """A probe that reads. What it keeps lies in `generations`: generation -> {(step, layer, ...): ...}, in order.

    A generation that was interrupted counts for nothing: `attach` has it dropped when an error ends it, and where the
    error was caught inside, `finished` leaves it out once another has gone further.
    """

    edits = False

    def __init__(self):
        self.generations, self.timesteps, self.blocks = {}, {}, {}  # step -> timestep; layer -> name, kind

    def cells(self, site) -> dict:
        """What was kept of the site's generation so far. Raises ValueError for a second schedule."""
        known = self.timesteps.get(site.step, site.timestep)
        if not site.evaluation and not math.isclose(known, site.timestep, rel_tol=1e-5, abs_tol=1e-5):
            raise ValueError(
                f"step {site.step} was at timestep {known:g} and is now at {site.timestep:g}; take another "
                f"{type(self).__name__} for another schedule"
            )
        self.timesteps.setdefault(site.step, site.timestep)
        self.blocks[site.layer] = site.name, site.kind
        return self.generations.setdefault(site.generation, {})

    def finished(self) -> list[dict]:
        """The generations' sites, in order, but for those that end where another goes on. Raises RuntimeError for none.

        >>> probe = Reading()
        >>> probe.generations = {1: {"first": 0}, 2: {"first": 0, "second": 0}}
        >>> probe.finished()
        [{'first': 0, 'second': 0}]
        """
        if not self.generations:
            raise nothing_seen(self)
        runs = [self.generations[number] for number in sorted(self.generations)]
        courses = {tuple(cells) for cells in runs}
        halves = {a for a in courses for b in courses if len(a) < len(b) and b[: len(a)] == a}
        return [cells for cells in runs if tuple(cells) not in halves]

    def forget_half(self, generation: int, last: tuple[int, int]) -> None:
        """Drop what was kept of a generation that did not come to its last (step, layer)."""
        if last not in {key[:2] for key in self.generations.get(generation, ())}:
            self.generations.pop(generation, None)


def nothing_seen(probe) -> RuntimeError:
    """The error of a probe that was asked before anything was generated."""
    name = type(probe).__name__
    return RuntimeError(f"the {name} has seen no tokens: generate inside `with mu.attach(pipe, {name.lower()}):` first")
