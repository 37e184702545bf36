"""What this process may take of a machine, by itself or in a container: memory, and the time of processors."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

OWN, GROUPS = "proc/self/cgroup", "sys/fs/cgroup"      # which control groups this process is in, and where they are


def free_memory(root: str = "/") -> int | None:
    """Bytes that this process may still take, swap included: what Linux calls available, or less where a control group (a container's, say) has a
    limit; None where the system does not tell. root: where /proc and /sys are.

    A process that takes more than there is gets killed without a word, so this is asked before it is taken.
    """
    try:
        about = dict(line.split(":", 1) for line in read(Path(root, "proc/meminfo")).splitlines())
        left = [1024 * sum(int(about[name].split()[0]) for name in ("MemAvailable", "SwapFree"))]
    except (ValueError, KeyError):
        return None
    for version, group in control_groups("memory", Path(root, OWN), Path(root, GROUPS)):
        limit, used, total = (("memory.max", "memory.current", "") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
        try:      # what is kept of files makes room when it is needed
            pages = dict(line.split() for line in read(group / "memory.stat").splitlines())
            left.append(int(read(group / limit)) - int(read(group / used)) + sum(int(pages[f"{total}{name}_file"]) for name in ("inactive", "active")))
        except (ValueError, KeyError):      # no such group, or "max"
            pass
    return max(0, min(left))


def cpu_quota(own: str | Path = f"/{OWN}", groups: str | Path = f"/{GROUPS}") -> float | None:
    """The processors' worth of time that the control groups of this process may have; None: no limit."""
    quotas = []
    for version, group in control_groups("cpu", own, groups):
        if version == 2:
            quota, period = [*read(group / "cpu.max").split(), "", ""][:2]
        else:
            quota, period = (read(group / f"cpu.cfs_{what}_us").strip() for what in ("quota", "period"))
        quotas += [int(quota) / int(period)] if quota.isdecimal() and period.isdecimal() and int(period) else []
    return min(filter(None, quotas), default=None)


def control_groups(controller: str, own: str | Path, groups: str | Path) -> Iterator[tuple[int, Path]]:
    """(version, folder) of the control groups of this process and of those around them, whose limits count too.

    `own` names the groups, where a container may see other paths than its `groups` has: some of these folders may not be there.
    """
    for line in read(own).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        group = PurePath(os.path.normpath("/" + path.lstrip("/"))).relative_to("/")
        for around in (group, *group.parents):
            if controllers:
                yield from ((1, Path(groups, name, around)) for name in (controllers, controller))
            else:
                yield 2, Path(groups, around)


def read(path: str | Path) -> str:
    """A small text file, "" where there is none that can be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
