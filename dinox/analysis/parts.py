"""Watching which part of a model is at work, from outside."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

BETWEEN = "between the parts"  # what measurements call the work of the model itself


@contextmanager
def watch_parts(model: nn.Module, on_switch: Callable[[str | None], None]) -> Iterator[None]:
    """While the context lasts, ``on_switch(part)`` is called whenever another part of the model takes over.

    Parts are the model's children, by name; None is what the model does itself between them. A part that calls another
    one (a decoder that asks the box heads) hands over to it and gets the work back. A part without a ``forward`` of its
    own, whose methods are called instead, is watched through the modules inside of it.
    """
    active: list[str] = []  # the innermost part last

    def enter(part: str) -> None:
        active.append(part)
        if active[-2:] != [part, part]:
            on_switch(part)

    def leave(part: str) -> None:
        active.pop()
        now = active[-1] if active else None
        if now != part:
            on_switch(now)

    with ExitStack() as hooks:
        for part, child in model.named_children():
            for module in _modules_with_forward(child):
                # These names are bound now: a closure would see the loop's last part.
                before = module.register_forward_pre_hook(lambda module, args, part=part: enter(part))
                after = module.register_forward_hook(lambda module, args, output, part=part: leave(part))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
        yield


def _modules_with_forward(module: nn.Module) -> Iterator[nn.Module]:
    """The module, or the nearest modules inside of it that can be called."""
    if _has_forward(module):
        yield module
        return
    for child in module.children():
        yield from _modules_with_forward(child)


def _has_forward(module: nn.Module) -> bool:
    # Containers and parts that offer methods instead inherit torch's placeholder, which only raises.
    return type(module).forward is not nn.Module.forward
