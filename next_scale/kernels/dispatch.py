"""Which implementation of an op runs: the one asked for, or the fastest that can."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from next_scale.errors import UserError, first_line
from next_scale.kernels.runtime import KernelError

CHOICES = ("auto", "cuda", "torch", "reference")
VARIABLE = "NEXT_SCALE_KERNELS"
MEASURED: frozenset[str] = frozenset()  # ops whose kernel a GPU has been measured to run right and ahead of PyTorch

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def dispatch(
    op: str,
    implementation: str,
    obstacle: Callable[[], str | None],
    cuda: Callable[[], Result],
    torch: Callable[[], Result],
    reference: Callable[[], Result],
) -> Result:
    """Run one implementation of an op.

    Args:
        op: its name, for messages.
        implementation: ``auto``, ``cuda``, ``torch`` (the fast path in PyTorch) or ``reference`` (the definition).
            ``auto`` is what ``NEXT_SCALE_KERNELS`` says; where that says nothing or ``auto`` too, the kernel where it
            can run and has been measured on a GPU (`MEASURED`), and else the fast path, and the log says once why.
        obstacle: why the kernel cannot run on these inputs; None where it can.
        cuda, torch, reference: the implementations.

    Raises:
        UserError: no such implementation, or the kernel is asked for by name and cannot run here.
        KernelError: the kernel is asked for by name and fails to compile, load or launch.
    """
    if implementation == "auto":
        implementation = os.environ.get(VARIABLE) or "auto"
    if implementation not in CHOICES:
        raise UserError(f"there is no implementation {implementation!r} of {op}: choose one of {', '.join(CHOICES)}")
    if implementation == "reference":
        return reference()
    if implementation == "torch":
        return torch()
    reason = obstacle()
    if implementation == "cuda":
        if reason is not None:
            raise UserError(f"the CUDA kernel of {op} cannot run: {reason}; choose another implementation, or auto")
        return cuda()
    if reason is None and op not in MEASURED:
        reason = f"no GPU has measured its kernel yet; {VARIABLE}=cuda runs it"
    if reason is None:
        try:
            return cuda()
        except KernelError as error:
            reason = first_line(error)
    _log_once(op, reason)
    return torch()


@cache
def _log_once(op: str, reason: str) -> None:
    logger.info("%s runs in PyTorch: %s", op, reason)
