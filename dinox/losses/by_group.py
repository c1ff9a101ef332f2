"""One loss for one query group, another for the rest."""

from collections.abc import Callable

from torch import Tensor

from dinox.structures import MatchedPredictions

Loss = Callable[[MatchedPredictions], Tensor]


class LossByGroup:
    """Loss parts by query group: ``LossByGroup(otherwise=..., denoising=...)``.

    otherwise: of all groups that are not named, and of the encoder's proposals. The names of the others are those of
    ``criterion.group_weights``; the criterion rejects one that no group has.
    """

    def __init__(self, *, otherwise: Loss, **exceptions: Loss):
        self.otherwise = otherwise
        self.exceptions = exceptions

    @property
    def groups(self) -> frozenset[str]:
        return frozenset(self.exceptions)

    def __call__(self, matched: MatchedPredictions) -> Tensor:
        """Returns (A,): one sum per prediction set."""
        return self._of(matched)(matched)

    def normaliser(self, matched: MatchedPredictions) -> Tensor | None:
        """(A,), or None where the group's loss has no normaliser of its own."""
        loss = self._of(matched)
        return loss.normaliser(matched) if hasattr(loss, "normaliser") else None

    def _of(self, matched: MatchedPredictions) -> Loss:
        return self.exceptions.get(matched.group, self.otherwise)
