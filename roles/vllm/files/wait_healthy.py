#!/usr/bin/env python3
"""ExecStartPost of vllm@.service: return when the engine answers /health.

So `active` means that the engine serves, units ordered after it may use it at once, and
systemd's start timeout covers the loading of the weights. Ends early when the engine dies.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request

#: Seconds between two questions; an engine takes tens of seconds to minutes to load.
INTERVAL = 1.0


def alive(pid: int) -> bool:
    """Whether the process still runs (a zombie does not)."""
    try:
        with open("/proc/%d/stat" % pid, encoding="ascii", errors="replace") as handle:
            return handle.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def healthy(url: str) -> bool:
    """Whether the engine answers 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> int:
    """wait_healthy.py URL PID; systemd's own timeout bounds the wait."""
    url, pid = sys.argv[1], int(sys.argv[2])
    while not healthy(url):
        if not alive(pid):
            print("the engine ended before it answered %s" % url, file=sys.stderr)
            return 1
        time.sleep(INTERVAL)
    print("the engine answers %s" % url)
    return 0


if __name__ == "__main__":
    os.environ.pop("VLLM_API_KEY", None)
    sys.exit(main())
