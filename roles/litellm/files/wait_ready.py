"""ExecStartPost: ends when the gateway answers, or fails when its process has ended.

systemd bounds the wait by TimeoutStartSec.
"""

import os
import sys
import time
import urllib.error
import urllib.request


def main(url, pid):
    """0 as soon as the address answers 200; 1 when the process is gone."""
    # No proxy: this is the host's own address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(url, timeout=5) as answer:
                if answer.status == 200:
                    return 0
        except (urllib.error.URLError, OSError):
            pass
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            sys.stderr.write("the gateway's process ended before it was ready\n")
            return 1
        except PermissionError:
            pass
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
