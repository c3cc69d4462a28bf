"""The tables of the scoreboard, in Markdown: figures of each tool, and what became of each fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from scoreboard_run import Case, Outcome

Some = Sequence[Outcome]


def score(outcomes: Some, tools: Sequence[str]) -> Iterator[str]:
    """The figures of each tool, one row per figure."""
    by_tool = {tool: [each for each in outcomes if each.tool == tool] for tool in tools}

    def row(name: str, figure: Callable[[Some], object]) -> str:
        return f"| {name} | " + " | ".join(str(figure(by_tool[tool])) for tool in tools) + " |"

    def most(figure: Callable[[Outcome], float]) -> Callable[[Some], str]:
        return lambda some: f"{max(map(figure, some), default=0):.0f}"

    yield "| | " + " | ".join(tools) + " |"
    yield "| --- |" + " ---: |" * len(tools)
    yield row("faults tried", len)
    yield row("survived", lambda some: sum(each.survived for each in some))
    yield row("silent wrong files", lambda some: sum(len(each.silent) for each in some))
    yield row("files lost", lambda some: sum(len(each.lost) for each in some))
    yield row("writes outside the destination", lambda some: sum(len(o.outside) for o in some))
    yield row("secrets leaked", lambda some: sum(len(each.leaked) for each in some))
    yield row("raw control characters shown", lambda some: sum(o.raw_controls for o in some))
    yield row("hangs", lambda some: sum(each.hung for each in some))
    yield row("not right after a second run", lambda some: sum(not o.converged for o in some))
    yield row("left-overs after a second run", lambda some: sum(len(o.leftovers) for o in some))
    yield row("kill -9: right after a second run", _kills)
    yield row("longest run, s", most(lambda each: each.seconds))
    yield row("worst recovery, s", most(lambda each: each.recovery_s or 0.0))
    if any(each.requests for each in outcomes):
        yield row("requests in the worst storm", most(lambda each: each.requests))
    yield row("peak memory, MiB", most(lambda each: each.rss_mib))


def _kills(some: Some) -> str:
    kills = sum(each.kills or 0 for each in some)
    return f"{sum(each.kills_converged for each in some)} of {kills}" if kills else "-"


def details(cases: Sequence[Case], outcomes: Some, tools: Sequence[str]) -> Iterator[str]:
    """What became of each fault: the exit code, and what was wrong."""
    yield "| fault | what goes wrong | " + " | ".join(tools) + " |"
    yield "| --- | --- |" + " --- |" * len(tools)
    made = {(each.case, each.tool): each for each in outcomes}
    for case in cases:
        cells = [cell(made.get((case.name, tool))) for tool in tools]
        yield f"| {case.name} | {case.about} | " + " | ".join(cells) + " |"


def cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    if outcome.kills is not None:
        text = f"{outcome.kills_converged} of {outcome.kills} right"
    else:
        text = "no end" if outcome.exit_code is None else f"exit {outcome.exit_code}"
    wrong = [
        f"{len(names)} {word}"
        for names, word in (
            (outcome.silent, "silently wrong"),
            (outcome.lost, "lost"),
            (outcome.outside, "outside"),
            (outcome.leaked, "leaked"),
            (outcome.leftovers, "left over"),
        )
        if names
    ]
    wrong += ["raw controls"] * outcome.raw_controls + ["stays wrong"] * (not outcome.converged)
    return text + (f", **{', '.join(wrong)}**" if wrong else "")
