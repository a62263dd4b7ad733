"""The limit of file descriptors, raised from what a process starts with to what it may need.

Caller: `deltawire serve`. A server that is embedded leaves the limits of its process alone.
"""

from __future__ import annotations

from typing import Final

EACH: Final = 2
"""For each connection: its own, and one to an upstream."""
FURTHER: Final = 128
"""What is open anyway, clients who are told that there are too many, and, to each upstream, the
idle connections that a transport keeps, of which there are 100 at most."""


def raise_limit(connections: int) -> str | None:
    """Raise the soft limit as far as so many need it and the hard one lets it; never lower it.

    None, or what to say where that is not enough.
    """
    try:
        import resource
    except ImportError:
        # Windows has no such limit.
        return None
    wanted = EACH * connections + FURTHER
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return None
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (OSError, ValueError):
        # macOS has a limit below the hard one, and does not say which.
        raised = soft
    if raised >= wanted:
        return None
    return (
        f"limits.connections is {connections}, which may take {wanted} file descriptors, and this"
        f" process may have {raised}: lower it, or raise the hard limit (ulimit -Hn)"
    )
