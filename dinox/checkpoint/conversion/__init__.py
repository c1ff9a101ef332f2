"""Weights of other implementations under dinox's names, and back."""

from dinox.checkpoint.conversion.converting import Conversion, convert, guess_source
from dinox.checkpoint.conversion.files import ConversionReport, convert_file
from dinox.checkpoint.conversion.formats import SOURCES, TARGETS

__all__ = ["SOURCES", "TARGETS", "Conversion", "ConversionReport", "convert", "convert_file", "guess_source"]
