"""How an operator's phone takes calls: the ways to decide over an incoming one, for `Phone(on_invite=…)`."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from callrouter.phone.dialog import Dialog

Decision = Callable[[Dialog], Coroutine[Any, Any, None]]


def answers(ring_s: float = 0.1) -> Decision:
    """Rings for that long, then talks."""

    async def decide(dialog: Dialog) -> None:
        await dialog.phone.ring(dialog)
        await asyncio.sleep(ring_s)
        await dialog.phone.answer(dialog)

    return decide


def declines(code: int = 486) -> Decision:
    async def decide(dialog: Dialog) -> None:
        dialog.phone.refuse(dialog, code)

    return decide


def lets_ring() -> Decision:
    """Nobody is at the phone."""

    async def decide(dialog: Dialog) -> None:
        await dialog.phone.ring(dialog)

    return decide
