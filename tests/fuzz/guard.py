"""What every target must keep to: a result or a clear refusal, within 5 seconds and 2 GiB.

Seconds are those of the processor, so that a machine with other work to do raises no false alarm; what sleeps for a
minute ends the process.
"""

from __future__ import annotations

import faulthandler
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from next_scale.errors import UserError

SECONDS = 5.0  # that one execution may take
MEMORY = 2 << 30  # bytes that the process may have held at its peak
_NOISE = 64 << 20


class Fault(AssertionError):
    """An execution that broke the rule; its cause is the exception that got out, if one did."""


class _Hang(BaseException):
    """Raised by the alarm, past every ``except Exception``."""


@contextmanager
def alarm(seconds: float = SECONDS) -> Iterator[None]:
    """Raise `_Hang` in Python code that takes longer; end the process, with a traceback, where C code does."""

    def ring(*_: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGPROF, ring)
    faulthandler.dump_traceback_later(12 * seconds, exit=True)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def peak() -> int:
    """Most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_memory(more: int = MEMORY) -> None:
    """Let this process allocate so many bytes more than it has: a bomb then fails, and the machine lives on."""
    with open("/proc/self/status") as status:
        own = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (own + more, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def check(run: Callable[[bytes], object], data: bytes) -> bool:
    """Run a target once; whether it accepted the data.

    Raises:
        Fault: an exception other than UserError, an exit code other than 0 or 2, more than 5 s, or more than 2 GiB.
    """
    began, before = time.process_time(), peak()
    try:
        with alarm():
            run(data)
            accepted = True
    except UserError as error:
        accepted = False
        if "\n" in str(error) or not str(error):
            raise Fault(f"a refusal of more or less than one line: {str(error)!r}") from error
    except SystemExit as error:  # what a command ends with that prints its help
        if error.code not in (None, 0, 2):
            raise Fault(f"exit code {error.code}") from error
        accepted = True
    except _Hang as error:
        raise Fault(f"more than {SECONDS:g} s") from error
    except Exception as error:
        raise Fault(f"{type(error).__name__}: {error}") from error
    if (took := time.process_time() - began) > SECONDS:
        raise Fault(f"{took:.1f} s")
    if peak() > max(MEMORY, before + _NOISE):  # the process may have held more before
        raise Fault(f"{peak() / 2**20:,.0f} MiB")
    return accepted
