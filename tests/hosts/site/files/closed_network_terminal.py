#!/usr/bin/env python3
"""Run a program in a pseudo-terminal with no route out, and answer what it shows. Runs on the test host, as root.

closed_network_terminal.py ACCOUNT FOLDER PORT STEPS COMMAND...

STEPS is JSON: [[what to wait for, what to type], ...]. The program gets a network namespace of its own: loopback, and
on it PORT, which a pair of relays joined by a Unix socket leads to the same port of the host. There is no other way
out, and that is checked before the program starts. Prints the screen; exit status 0 if all steps were seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import pty
import pwd
import re
import select
import signal
import socket
import struct
import sys
import tempfile
import termios
import threading
import time

CLONE_NEWNET = 0x40000000
#: Seconds after which a program that draws nothing of what is expected hangs.
HANGS = 1200


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data = source.recv(65536)
            if not data:
                break
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def relay(listener: socket.socket, family: int, address: object) -> None:
    """Join each connection to a new one to `address`."""
    while True:
        left, _ = listener.accept()
        right = socket.socket(family)
        right.connect(address)  # type: ignore[arg-type]
        threading.Thread(target=pump, args=(left, right), daemon=True).start()
        threading.Thread(target=pump, args=(right, left), daemon=True).start()


def listen(family: int, address: object) -> socket.socket:
    listener = socket.socket(family)
    listener.bind(address)  # type: ignore[arg-type]
    listener.listen(64)
    return listener


def close_network() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        up = struct.pack("16sh22x", b"lo", 1)
        fcntl.ioctl(control, 0x8914, up)  # SIOCSIFFLAGS: IFF_UP
    probe = socket.socket()
    result = probe.connect_ex(("192.0.2.1", 443))
    probe.close()
    assert result == errno.ENETUNREACH, f"there is a way out: {errno.errorcode.get(result, result)}"


def squeeze(raw: bytes) -> str:
    """What stands on the screen, without escape sequences and blanks: a program draws blanks by moving the cursor."""
    text = raw.decode("utf-8", "replace")
    text = re.sub(r"\x1b\][^\x07\x1b]*(\x07|\x1b\\)", "", text)
    text = re.sub(r"\x1b[\[(][0-9;?<>=]*[ -/]*[@-~]", "", text)
    return re.sub(r"\s+|\x1b.", "", text)


def settle(descriptor: int) -> None:
    """Wait until nothing has been drawn for two seconds: a dialog that is drawn again forgets the keys before."""
    while select.select([descriptor], [], [], 2.0)[0]:
        os.read(descriptor, 65536)


def drive(descriptor: int, steps: list) -> bool:
    screen, done = b"", True
    for expected, keys in steps:
        deadline = time.monotonic() + HANGS
        wanted = re.sub(r"\s+", "", expected)
        while wanted not in squeeze(screen):
            if time.monotonic() > deadline:  # clock: the limit for what hangs
                print(f"NOT SEEN: {expected}")
                done = False
                break
            ready, _, _ = select.select([descriptor], [], [], 0.5)
            if ready:
                try:
                    data = os.read(descriptor, 65536)
                except OSError:
                    data = b""
                if not data:
                    print(f"ENDED BEFORE: {expected}")
                    return show(screen, False)
                screen += data
        if not done:
            break
        print(f"SEEN: {expected}")
        if keys:
            settle(descriptor)
            screen = b""
            os.write(descriptor, keys.encode())
    return show(screen, done)


def show(screen: bytes, done: bool) -> bool:
    print(squeeze(screen)[-3000:])
    return done


def main() -> int:
    account = pwd.getpwnam(sys.argv[1])
    folder, port, steps, command = sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]), sys.argv[5:]
    path = tempfile.mkdtemp() + "/gateway"
    outside = listen(socket.AF_UNIX, path)
    threading.Thread(target=relay, args=(outside, socket.AF_INET, ("127.0.0.1", port)), daemon=True).start()
    pid, descriptor = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 140, 0, 0))
        close_network()
        inside = listen(socket.AF_INET, ("127.0.0.1", port))
        if os.fork() == 0:
            relay(inside, socket.AF_UNIX, path)
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        os.chdir(folder)
        environment = {
            "HOME": account.pw_dir,
            "USER": account.pw_name,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "SHELL": "/bin/bash",
        }
        os.execvpe(command[0], command, environment)
    try:
        return 0 if drive(descriptor, steps) else 1
    finally:
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
