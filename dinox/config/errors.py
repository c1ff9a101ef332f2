"""What all of ``dinox.config`` and ``dinox.model_zoo`` raise for a mistake in a config, an override or a name."""

from dataclasses import dataclass


class ConfigError(ValueError):
    """The message names the file, the key or the override, what was expected, what was found and what to do."""


@dataclass(frozen=True)
class Source:
    """Where an override comes from: the config's file and the text on the command line."""

    file: str
    text: str

    def error(self, reason: str) -> ConfigError:
        return ConfigError(f"{self.file}: override '{self.text}': {reason}")
