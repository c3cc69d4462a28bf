"""What the benches found: figures, goals and verdicts, as Markdown and as JSON."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from measure import Measurement
from peers import Tool


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure to stay at or below: `must` is required, `aim` is hoped for; either may be None."""

    subject: str
    unit: str
    must: float | None
    aim: float | None
    measured: float | None

    @property
    def missed(self) -> bool:
        return self.measured is not None and self.must is not None and self.measured > self.must

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        if self.missed:
            return "MUST MISSED"
        if self.aim is None:
            return "must met"
        if self.measured <= self.aim:
            return "aim met"
        return "aim missed" if self.must is None else "must met, aim missed"


@dataclass(slots=True)
class Result:
    """One work at one place. `files` and `size` are what one run handles, 0 where that is idle."""

    work: str
    place: str
    files: int
    size: int
    measurements: list[Measurement]
    goals: list[Goal]

    def measurement(self, name: str) -> Measurement | None:
        """The runs of one tool, if all of them went well."""
        for measurement in self.measurements:
            if measurement.name == name and measurement.complete:
                return measurement
        return None

    def ratio(self, name: str, peer: str) -> float | None:
        """How many times the peer's median time `name` took."""
        ours, theirs = self.measurement(name), self.measurement(peer)
        return ours.seconds / theirs.seconds if ours and theirs else None


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "load at the start": round(os.getloadavg()[0], 2),
    }


@dataclass(slots=True)
class Report:
    """All results of one run of a bench, with where and how they were taken."""

    title: str
    settings: dict[str, Any]
    tools: list[Tool]
    peers: Sequence[str]
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=_machine)

    @property
    def failures(self) -> list[str]:
        return [
            f"{result.work} on {result.place}: {measurement.name}: {measurement.failure}"
            for result in self.results
            for measurement in result.measurements
            if measurement.failure is not None
        ]

    @property
    def missed(self) -> list[Goal]:
        return [goal for result in self.results for goal in result.goals if goal.missed]

    def markdown(self) -> str:
        """Title, circumstances, a table of figures, a table of goals, what went wrong."""
        machine = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        parts = [f"# {self.title}", f"{machine}; {settings}"]
        parts.append("\n".join(f"- {t.name}: {t.version} ({t.path})" for t in self.tools))
        parts.append(self._figures())
        parts.append(self._verdicts())
        problems = [*self.notes, *self.failures]
        if problems:
            parts.append("\n".join(f"- {problem}" for problem in problems))
        return "\n\n".join(parts) + "\n"

    def write_json(self, path: Path) -> None:
        path.write_text(json.dumps(self._data(), indent=2, ensure_ascii=False) + "\n")

    def _figures(self) -> str:
        heading = ["place", "work", "command", "time s", "range s"]
        heading += [f"x {peer}" for peer in self.peers]
        heading += ["files/s", "MB/s", "CPU s", "peak RSS MB", "whole tree MB"]
        rows = []
        for result in self.results:
            for m in result.measurements:
                if not m.complete:
                    blanks = [""] * (len(heading) - 4)
                    rows.append([result.place, result.work, m.name, "failed", *blanks])
                    continue
                row = [result.place, result.work, m.name, f"{m.seconds:.3f}"]
                row.append(f"{m.fastest:.3f}-{m.slowest:.3f}")
                row += [_number(result.ratio(m.name, peer), 2) for peer in self.peers]
                row.append(_rate(result.files, m.seconds))
                row.append(_rate(result.size / 1e6, m.seconds))
                row.append(f"{m.cpu_s:.2f}")
                row += [_number(_megabytes(rss), 1) for rss in (m.process_rss, m.tree_rss)]
                rows.append(row)
        return markdown_table(heading, rows, names=3)

    def _verdicts(self) -> str:
        rows = []
        for result in self.results:
            for goal in result.goals:
                figures = [_goal_number(n) for n in (goal.must, goal.aim, goal.measured)]
                rows.append(
                    [result.place, result.work, goal.subject, goal.unit, goal.verdict, *figures]
                )
        heading = ["place", "work", "goal", "unit", "verdict", "must", "aim", "measured"]
        return markdown_table(heading, rows, names=5)

    def _data(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "machine": self.machine,
            "settings": self.settings,
            "tools": [asdict(tool) for tool in self.tools],
            "results": [
                {
                    "work": result.work,
                    "place": result.place,
                    "files": result.files,
                    "bytes": result.size,
                    "measurements": [
                        self._measurement_data(result, m) for m in result.measurements
                    ],
                    "goals": [{**asdict(g), "verdict": g.verdict} for g in result.goals],
                }
                for result in self.results
            ],
            "notes": self.notes,
            "failures": self.failures,
        }

    def _measurement_data(self, result: Result, measurement: Measurement) -> dict[str, Any]:
        data = asdict(measurement)
        if measurement.complete:
            seconds = measurement.seconds
            data |= {
                "median_seconds": seconds,
                "median_user_s": measurement.user_s,
                "median_system_s": measurement.system_s,
                "median_cpu_s": measurement.cpu_s,
                "files_per_s": result.files / seconds,
                "bytes_per_s": result.size / seconds,
                "time_ratio": {peer: result.ratio(measurement.name, peer) for peer in self.peers},
            }
        return data


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]], *, names: int) -> str:
    """A table that reads well as plain text too; all but the first `names` columns are numbers."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (heading, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(heading))]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if column < names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    rule = [
        "-" * width if column < names else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return "\n".join(lines)


def say(text: str) -> None:
    """Tell the person who waits what is going on."""
    print(text, file=sys.stderr, flush=True)


def _megabytes(size: int | None) -> float | None:
    return None if size is None else size / 1e6


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _goal_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _rate(amount: float, seconds: float) -> str:
    return f"{amount / seconds:.0f}" if amount else "-"
