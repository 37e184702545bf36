"""How much memory is left, before it is taken: a process that takes more than there is gets killed without a word."""

from pathlib import Path


def free_memory(root: str = "/") -> int | None:
    """Bytes that this process may still take, swap included: what Linux calls available, or less where a control group (a container's, say) has a
    limit; None where the system does not tell. root: where /proc and /sys are."""
    try:
        about = dict(line.split(":", 1) for line in Path(root, "proc/meminfo").read_text(encoding="utf-8").splitlines())
        left = [1024 * sum(int(about[name].split()[0]) for name in ("MemAvailable", "SwapFree"))]
    except (OSError, ValueError, KeyError):
        return None
    try:
        groups = [line.split(":", 2)[1:] for line in Path(root, "proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        groups = []
    for controllers, path in groups:
        if not controllers:
            base, names = Path(root, "sys/fs/cgroup"), ("memory.max", "memory.current", ("inactive_file", "active_file"))
        elif "memory" in controllers.split(","):
            base, names = Path(root, "sys/fs/cgroup/memory"), ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for depth in range(0 if ".." in parts else len(parts), -1, -1):      # each limit above counts too; inside a container the path may be the host's
            left += within(base.joinpath(*parts[:depth]), *names)
    return max(0, min(left))


def within(group: Path, limit: str, used: str, reclaimed: tuple[str, ...]) -> list[int]:
    """[bytes left in a control group], [] where it has no limit. What is kept of files makes room when it is needed."""
    try:
        pages = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        return [int((group / limit).read_text(encoding="utf-8")) - int((group / used).read_text(encoding="utf-8")) + sum(int(pages[name]) for name in reclaimed)]
    except (OSError, ValueError, KeyError):      # no such group, or "max"
        return []
