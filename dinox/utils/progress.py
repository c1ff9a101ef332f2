"""Loggers for the lines that say how far a run is."""

import logging

PROGRESS = "dinox.progress"

training_progress = logging.getLogger(PROGRESS)
# detectron2 logs an evaluation's progress too, in longer lines; a terminal shows one of them.
evaluation_progress = logging.getLogger(f"{PROGRESS}.evaluation")
