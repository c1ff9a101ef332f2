"""What a look at the environment finds."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """Something that keeps dinox from working, or from working well. cure: what to do, as an instruction."""

    what: str
    cure: str


@dataclass(frozen=True)
class Section:
    """facts: (name, value), in the order to be shown; a name may be empty, then the value belongs to the one before."""

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class EnvironmentReport:
    sections: list[Section]

    @property
    def problems(self) -> list[Problem]:
        return [problem for section in self.sections for problem in section.problems]

    def as_dict(self) -> dict[str, Any]:
        """For json: section -> name -> value, or a list of values."""
        sections: dict[str, dict[str, Any]] = {}
        for section in self.sections:
            facts: dict[str, list[str]] = {}
            name = ""
            for own_name, value in section.facts:
                name = own_name or name
                facts.setdefault(name, []).append(value)
            sections[section.title] = {
                name: values[0] if len(values) == 1 else values for name, values in facts.items()
            }
        problems = [{"what": problem.what, "cure": problem.cure} for problem in self.problems]
        return {"ok": not problems, "problems": problems, "sections": sections}


_LEAST_WIDTH = 18  # of names, so that the values of most sections stand in one column


def format_report(report: EnvironmentReport) -> str:
    """Sections of aligned lines; the problems with their cures come last."""
    lines = []
    for section in report.sections:
        if section.facts:
            width = max(_LEAST_WIDTH, *(len(name) for name, _ in section.facts))
            lines += [section.title, *(f"  {name:{width}}  {value}" for name, value in section.facts), ""]
    if not report.problems:
        return "\n".join([*lines, "Nothing needs attention. Next: dinox demo"])
    lines.append("1 problem" if len(report.problems) == 1 else f"{len(report.problems)} problems")
    for number, problem in enumerate(report.problems, start=1):
        lines += [f"  {number}. {problem.what}", f"     cure: {problem.cure}"]
    return "\n".join(lines)
