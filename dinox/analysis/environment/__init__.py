"""What is installed, what runs, and what is missing."""

from dinox.analysis.environment.operators import operators_section, processors_section
from dinox.analysis.environment.storage import datasets_section, disk_section, weights_section
from dinox.utils.environment_report import EnvironmentReport, Problem, Section
from dinox.utils.software import differences_section, optional_section, settings_section, software_section

__all__ = ["EnvironmentReport", "Problem", "Section", "examine_environment"]


def examine_environment() -> EnvironmentReport:
    """Look at everything that dinox depends on. Takes a second; changes nothing and needs no network."""
    return EnvironmentReport(
        [
            software_section(),
            differences_section(),
            processors_section(),
            operators_section(),
            optional_section(),
            settings_section(),
            datasets_section(),
            weights_section(),
            disk_section(),
        ]
    )
