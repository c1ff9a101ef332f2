"""States of the random number generators that training draws from: Python's, numpy's and torch's default ones."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_NUMPY = "MT19937"


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Whatever is drawn inside, from the default generators of Python, numpy and torch (CPU and the current GPU), has
    not been drawn afterwards."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


@contextmanager
def seeded_random_state(*key: int) -> Iterator[None]:
    """What is drawn inside, from the default generators of Python, numpy and torch's CPU, depends on ``key`` alone,
    and has not been drawn afterwards. key: whole numbers from 0.

    For what runs per image: GPUs are not asked.
    """
    python, arrays, torch_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first, second, third = (int(word) for word in np.random.SeedSequence(key).generate_state(3))
    try:
        random.seed(first)
        np.random.seed(second)
        torch.default_generator.manual_seed(third)  # torch.manual_seed would seed the GPUs of the process too
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(torch_cpu)


def random_state(generators: Mapping[str, torch.Generator] | None = None) -> dict[str, Any]:
    """The states of the default generators, and of further ones by name: tensors, numbers and texts, as
    ``torch.load(weights_only=True)`` reads them. The GPU is the current one, if this process uses any."""
    version, words, next_gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    assert name == _NUMPY, f"np.random uses {name}"
    state = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "next_gauss": next_gauss},
        "numpy": {
            "words": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached),
        },
        "torch": torch.get_rng_state(),
        "generators": {name: generator.get_state() for name, generator in (generators or {}).items()},
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(
    state: Mapping[str, Any], generators: Mapping[str, torch.Generator] | None = None
) -> Sequence[str]:
    """Go on from ``random_state``'s. Returns what of it is not here: "cuda", or names of generators."""
    python, arrays = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["next_gauss"]))
    words = arrays["words"].numpy().astype(np.uint32)
    np.random.set_state((_NUMPY, words, arrays["position"], arrays["has_gauss"], arrays["cached_gaussian"]))
    torch.set_rng_state(state["torch"])
    absent = []
    if "cuda" in state:
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        else:
            absent.append("cuda")
    for name, saved in state["generators"].items():
        if name in (generators or {}):
            generators[name].set_state(saved)
        else:
            absent.append(name)
    return absent


def own_generators(model: torch.nn.Module) -> dict[str, torch.Generator]:
    """The generators that modules of a model hold as attributes, by ``module.attribute``."""
    return {
        f"{name}.{attribute}": value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, torch.Generator)
    }


def hashed_seed(*key: int | str) -> int:
    """A seed for torch's generators that depends on nothing but the key: the same in all processes and runs."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits
