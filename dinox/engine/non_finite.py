"""What happens when a loss, a cost or a gradient is NaN or infinite: an error with its cause, or a step left out.

The trainer's check comes before the optimizer's step, so that the weights are those that the batch met. So its forward
pass can be run once more, with the same random numbers, and watched this time (``first_non_finite``). All ranks find
the same values in what they gathered, and run again together, each its own batch: whatever they tell each other inside
of the model is what it was the first time. (DistributedDataParallel's own part, the gradients, is left out.)
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from dinox.checkpoint import CheckpointError
from dinox.checkpoint.run_files import save
from dinox.engine.batch_dump import plain
from dinox.engine.first_non_finite import non_finite_gradients
from dinox.engine.non_finite_list import SkippedSteps
from dinox.engine.peers import FloatingPointErrorOnAllRanks
from dinox.engine.rerun import Autocast, ForwardPass, file_names, find_origin, running_statistics
from dinox.utils.distributed import unwrapped
from dinox.utils.random_state import own_generators, random_state, set_random_state

logger = logging.getLogger(__name__)

DUMP_FILE = "non_finite_{iteration:07d}_rank{rank}.pth"
WEIGHTS_FILE = "non_finite_{iteration:07d}_weights.pth"
GRADIENT = "grad_norm"
"""What the trainer calls the norm of the whole gradient."""

_FILES_IN_ERROR = 16  # a whole batch of the papers
_TERMS_IN_ERROR = 6
_GRADIENTS_IN_ERROR = 3


@dataclass(frozen=True)
class BadStep:
    """A step with a value that is not finite; the same on all ranks.

    values: by rank, the losses and the gradient's norm by name. terms: the names of those that are not finite.
    precision: "fp32", "bf16" or "fp16". loss_scale: 1 but in fp16.
    """

    iteration: int
    values: Sequence[Mapping[str, float]]
    terms: Sequence[str]
    lr: float
    loss_scale: float
    precision: str

    @property
    def of_gradient(self) -> bool:
        """Are the losses finite, and the gradient is not?"""
        return list(self.terms) == [GRADIENT]

    def __str__(self) -> str:
        worst = {
            name: own[name] for own in reversed(self.values) for name in self.terms if not is_finite_number(own[name])
        }
        more = len(self.terms) - _TERMS_IN_ERROR
        terms = ", ".join(f"{name} = {worst[name]}" for name in self.terms[:_TERMS_IN_ERROR])
        terms += f" and {more} more" if more > 0 else ""
        return f"non-finite {'gradient' if self.of_gradient else 'loss'} at iteration {self.iteration}: {terms}"


class NonFiniteSteps:
    """Steps with values that are not finite: explained, and an error as soon as there are more than ``most_skipped``.

    A step that is skipped changes neither weights nor averages of them, on any rank; as an iteration it counts. Its
    images and its cause are in the log and in ``non_finite_steps.csv``. At the error the batch, with the state of the
    random number generators, is written to ``non_finite_<iteration>_rank<rank>.pth`` by each rank whose values are not
    finite, and the weights by the first one; :func:`dinox.analysis.rerun_non_finite` runs them again.

    Args:
        most_skipped: steps of the whole run, before and after it is resumed. 0: the first one is the error.
        output_dir: for these files. None: there are none.
    """

    def __init__(self, *, most_skipped: int = 0, output_dir: str | Path | None = None):
        check_non_finite({"most_skipped": most_skipped})
        self.most_skipped = most_skipped
        self._folder = None if output_dir is None else Path(output_dir)
        self._skipped = SkippedSteps(self._folder)
        self._passes: list[ForwardPass] = []
        self._model: nn.Module | None = None
        self._generators: dict[str, torch.Generator] = {}
        self._statistics: list[Tensor] = []

    def begin_step(self) -> None:
        self._passes = []

    def before_forward(self, model: nn.Module, batch: list[dict]) -> None:
        """Keep what it takes to run the forward pass again, until the next step begins."""
        if self._model is not model:
            self._model = model
            self._generators, self._statistics = own_generators(unwrapped(model)), running_statistics(unwrapped(model))
        self._passes.append(ForwardPass.now(batch, self._generators, self._statistics))

    def images(self) -> str:
        """Of this rank's step, in words."""
        return describe_images([item for each in self._passes for item in each.batch])

    def handle(self, step: BadStep, model: nn.Module, autocast: Autocast) -> None:
        """To be called on all ranks. Returns if the step shall be skipped; gradients are gone then.

        Raises FloatingPointError with all that is known of the cause.
        """
        model = unwrapped(model)
        left = non_finite_gradients(model) if step.of_gradient else []
        model.zero_grad(set_to_none=True)  # which makes room
        drawn = random_state(self._generators)
        try:
            origin = find_origin(model, self._passes, autocast, step.loss_scale if step.of_gradient else None)
        except Exception:
            logger.error("%s. To see where it began, the batch was run again, which failed", step)
            raise
        model.zero_grad(set_to_none=True)
        set_random_state(drawn, self._generators)
        own = _own_terms(step)
        is_bad = origin.where is not None if step.of_gradient else bool(own)
        images = describe_images(origin.batch)
        reports = comm.all_gather(
            RankReport(is_bad, own, images, origin.where, left[:_GRADIENTS_IN_ERROR], origin.costs)
        )
        text = explanation(step, reports)
        if self._skipped.count >= self.most_skipped:
            raise FloatingPointErrorOnAllRanks(f"{text}. {self._end(step, model, reports)}")
        self._passes[0].restore_statistics()
        self._skipped.add(step.iteration, bad_reports(reports))
        logger.warning(
            "STEP SKIPPED (%d of at most %d): %s. The weights stay as they were",
            self._skipped.count,
            self.most_skipped,
            text,
        )

    def _end(self, step: BadStep, model: nn.Module, reports: Sequence["RankReport"]) -> str:
        """What the error says after the cause. Writes the files."""
        dumps = comm.all_gather(self._dump(step, model, reports))
        written = " and ".join(each for each in dumps if each)
        written = written[:1].upper() + written[1:]
        sentences = [
            "The weights were not updated and saved checkpoints are intact",
            f"{self._skipped.count} steps were skipped before it" if self._skipped.count else "",
            written,
            "Look at these images and boxes, lower optimizer.lr, or train in fp32 or bf16; "
            "train.non_finite.most_skipped leaves out so many steps",
        ]
        return ". ".join(each for each in sentences if each)

    def _dump(self, step: BadStep, model: nn.Module, reports: Sequence["RankReport"]) -> str:
        """Write this rank's files. Returns what a sentence says about them."""
        if self._folder is None:
            return ""
        bad = [each.is_bad for each in reports]
        rank, weights = comm.get_rank(), self._folder / WEIGHTS_FILE.format(iteration=step.iteration)
        sentences = []
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if bad[rank] or not any(bad):
                path = self._folder / DUMP_FILE.format(iteration=step.iteration, rank=rank)
                save(dump_content(step, self._passes, weights.name), path)
                sentences.append(f"the batch is in {path}")
            if rank == 0 and not any(hasattr(each, "to_local") for each in model.parameters()):
                self._passes[0].restore_statistics()
                save({"model": {name: plain(tensor) for name, tensor in model.state_dict().items()}}, weights)
                sentences.append(f"the weights are in {weights} (dinox.analysis.rerun_non_finite runs them again)")
        except (CheckpointError, OSError) as error:
            sentences.append(f"not written: {error}")
        return " and ".join(sentences)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self._skipped.count}

    def load_state_dict(self, state: Mapping[str, Any], *, iteration: int) -> None:
        """``iteration``: the last one that was finished."""
        self._skipped.resume(state.get("skipped", 0), iteration)


@dataclass(frozen=True)
class RankReport:
    """What a rank knows of its part in a bad step. terms: its values that are not finite. first: where they come from.
    gradients: names of some that are not finite. costs: what the matcher said."""

    is_bad: bool
    terms: Mapping[str, float]
    images: str
    first: str | None
    gradients: Sequence[str]
    costs: str | None


def bad_reports(reports: Sequence[RankReport]) -> dict[int, RankReport]:
    """By rank. All of them if it is nobody's."""
    return {rank: each for rank, each in enumerate(reports) if each.is_bad} or dict(enumerate(reports))


def explanation(step: BadStep, reports: Sequence[RankReport]) -> str:
    """All that is known, but for what to do."""
    bad = bad_reports(reports)
    rank_label = "rank {}: " if len(reports) > 1 else ""
    where = "; ".join(rank_label.format(rank) + each.images for rank, each in bad.items())
    scalars = [f"lr {step.lr:g}"]
    norm = step.values[0].get(GRADIENT)
    if norm is not None and GRADIENT not in step.terms:
        scalars.append(f"gradient norm {norm:g}")
    if step.loss_scale != 1:
        scalars.append(f"loss scale {step.loss_scale:g}")
    causes = "; ".join(rank_label.format(rank) + _cause(each, step) for rank, each in bad.items())
    costs = _by_ranks({rank: each.costs for rank, each in bad.items() if each.costs}, of=len(bad))
    return f"{step} ({', '.join(scalars)}; {where}). Where it began: {causes}" + (f" ({costs})" if costs else "")


def _by_ranks(texts: Mapping[int, str], *, of: int) -> str:
    """What several ranks say comes once; without their numbers if all of them say the same."""
    ranks: dict[str, list[str]] = {}
    for rank, text in texts.items():
        ranks.setdefault(text, []).append(f"rank {rank}")
    if len(ranks) == 1 and len(texts) == of:
        return next(iter(ranks))
    return "; ".join(f"{', '.join(those)}: {text}" for text, those in ranks.items())


def _cause(report: RankReport, step: BadStep) -> str:
    cause = report.first
    if cause is None:
        cause = "not found, run again the same batch gave finite numbers only"
        if step.of_gradient:
            cause += f" (not finite were the gradients of {', '.join(report.gradients)}, ...)"
    return cause


def dump_content(step: BadStep, passes: Sequence[ForwardPass], weights: str) -> dict[str, Any]:
    """Of this rank. weights: the name of the file beside it."""
    known: dict[int, Tensor] = {}  # parts of a batch may each hold all of it
    return {
        "iteration": step.iteration,
        "rank": comm.get_rank(),
        "world_size": comm.get_world_size(),
        "values": dict(step.values[comm.get_rank()]),
        "terms": list(step.terms),
        "lr": step.lr,
        "loss_scale": step.loss_scale,
        "precision": step.precision,
        "weights": weights,
        "passes": [
            {"inputs": plain(each.batch, known), "images": _names_and_ids(each.batch), "random": each.random}
            for each in passes
        ],
    }


def check_non_finite(options: Mapping[str, Any] | None) -> None:
    """Of ``train.non_finite``; None: no step is skipped. Raises ValueError naming the key."""
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"train.non_finite: expected most_skipped, such as {{most_skipped: 3}}, got {options!r}")
    for key, value in (options or {}).items():
        if key != "most_skipped":
            raise ValueError(f"train.non_finite.{key}: there is no such key, only train.non_finite.most_skipped")
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"train.non_finite.most_skipped: expected a whole number of at least 0, got {value!r}")


def is_finite_number(value: float) -> bool:
    return abs(value) < float("inf")  # False for NaN


def describe_images(batch: list[dict]) -> str:
    names = _names_and_ids(batch)
    more = f" and {len(names) - _FILES_IN_ERROR} more" if len(names) > _FILES_IN_ERROR else ""
    return "images: " + ", ".join(names[:_FILES_IN_ERROR]) + more


def _names_and_ids(batch: list[dict]) -> list[str]:
    ids = [f" (id {item['image_id']})" if "image_id" in item else "" for item in batch]
    return [name + own for name, own in zip(file_names(batch), ids)]


def _own_terms(step: BadStep) -> dict[str, float]:
    own = step.values[comm.get_rank()]
    return {name: own[name] for name in step.terms if not is_finite_number(own[name])}
