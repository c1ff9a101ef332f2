"""Did-you-mean: the nearest of the names that exist."""

import difflib
from collections.abc import Iterable

_CUTOFF = 0.6
"""difflib's ratio below which two names are called different; its own default."""


def closest(word: str, names: Iterable[str], *, n: int = 3, cutoff: float = _CUTOFF) -> list[str]:
    """At most ``n`` of ``names``, nearest first. cutoff: difflib's ratio that names spelt alike have at least.

    A dotted or slashed name whose last parts are ``word`` (``optimizer.lr`` for ``lr``) comes before names spelt alike.
    Upper and lower case count as equal.
    """
    by_lower = {name.lower(): name for name in sorted(names)}
    wanted = word.lower()
    endings = [lower for lower in by_lower if lower.endswith(("." + wanted, "/" + wanted))]
    alike = difflib.get_close_matches(wanted, by_lower, n=n, cutoff=cutoff)
    ranked = dict.fromkeys([*sorted(endings, key=len), *alike])
    return [by_lower[lower] for lower in ranked][:n]


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The sentence " Did you mean 'a' or 'b'?", or an empty string when nothing is near. It begins with a space."""
    near = [repr(name) for name in closest(word, names)]
    if not near:
        return ""
    listed = near[0] if len(near) == 1 else f"{', '.join(near[:-1])} or {near[-1]}"
    return f" Did you mean {listed}?"
