"""A cart: fixture of the documentation job."""

from typing import overload


class Cart:
    """Holds lines.

    Args:
        owner: Who pays.
    """

    limit = 10

    def __init__(self, owner):
        self.owner = owner
        self.lines = []

    @property
    def total(self) -> int:
        # sum up
        return sum(price for _, price in self.lines)

    @staticmethod
    def empty(): return Cart("nobody")

    async def add(
        self,
        name: str,
        price: int = 0,
    ) -> None:  # noqa

        def check(value):
            return value >= 0

        if check(price):
            self.lines.append((name, price))

    class Line:
        name: str


class CartError(Exception): pass


@overload
def pay(x: int) -> int: ...


def pay(x):
    return x


if True:
    def conditional(path):
        text = """
not indented
"""
        return path + text


def escaped(a):
	return a
