"""Numbers that torch.export may not know yet."""


def fewer(wanted: int, available: int) -> int:
    """``min(wanted, available)``, decided while a program is exported.

    ``available`` may be a symbol there. ``min`` would stay an expression, and with it the shape of everything behind
    it; this is the wanted number, and the program is for inputs that have as many.
    """
    return wanted if wanted <= available else available
