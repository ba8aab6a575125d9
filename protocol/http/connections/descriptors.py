"""The process's file descriptors, of which each connection needs one."""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)

# Descriptors for files of the model, libraries and connections to other servers.
_OTHERS = 256
# The limit is raised up to this: some programs close every possible descriptor before they start others.
_HIGHEST = 2**16


def reserve_descriptors(connections: int) -> int:
    """Raise the process's limit of open files if possible, and lower the number of connections to fit it.

    Returns:
        The number of connections that HTTP may have, and gRPC as well; at least one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _OTHERS
    limit = max(wanted, _HIGHEST) if hard == resource.RLIM_INFINITY else min(max(wanted, _HIGHEST), hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        soft = limit
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    # If there are few descriptors, half of them are for connections.
    bounded = max((soft - _OTHERS) // 2, soft // 4, 1)
    logger.warning(
        "max_connections is %d, but the process may open %d files: at most %d of HTTP, and of gRPC, are held; raise "
        "`ulimit -n`",
        connections, soft, bounded,
    )  # fmt: skip
    return bounded
