# MIT licence (see LICENSE)
"""What takes files in on a host. The controller sends this file's text to the host's Python (3.6 or later) and runs it
once for each chunk: a line of JSON on its standard input, then bytes; a line of JSON is its answer.

A file grows below `<root>/.part/` and gets its name when its hash is right: one that came in part is never used. What
was checked once is written down with what a change of it would change (size, times, inode), and a second look costs no
reading; what others may write (`fresh`: a disk or share that is not ours) is read each time.
"""

import fcntl
import hashlib
import json
import os
import sys

PARTS = ".part"
BLOCK = 1 << 20
#: Before the answer, because a shell may print something of its own.
MARK = "modelhost-receiver:"


def part_of(item):
    """Where a file grows. Two files may have the same bytes."""
    place = hashlib.sha256(item["path"].encode("utf-8")).hexdigest()[:16]
    return os.path.join(item["root"], PARTS, item["sha256"][:32] + "-" + place)


def place_of(item):
    """Where it ends."""
    return os.path.join(item["root"], item["path"])


def size_of(path):
    """Bytes of a file, or -1."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def sha256_of(path):
    """Checksum of a file that may be larger than memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def folder(path):
    """A folder with all above it, open to every account: apt and engines read under their own."""
    if not os.path.isdir(path):
        folder(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)


def read_record(path):
    """{file: note_of} what was checked; empty where nothing was written down."""
    try:
        with open(path) as handle:
            return dict(json.load(handle))
    except (OSError, ValueError):
        return {}


def write_record(path, record):
    """All of it or nothing."""
    folder(os.path.dirname(path))
    with open(path + ".new", "w") as handle:
        json.dump(record, handle, indent=0, sort_keys=True)
    os.rename(path + ".new", path)


def note_of(path, sha256):
    """What is written down of a file that was checked."""
    status = os.stat(path)
    return [sha256, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def there(item, record):
    """Whether a file is whole and right."""
    place = place_of(item)
    if size_of(place) != item["size"]:
        return False
    # Noted before it is read: a change in between shows next time.
    note = note_of(place, item["sha256"])
    if item.get("fresh") or record.get(place) != note:
        if sha256_of(place) != item["sha256"]:
            return False
        record[place] = note
    return True


def strays(root, items):
    """Files below a folder of ours that nobody wants any more."""
    wanted = {place_of(item) for item in items} | {part_of(item) for item in items}
    for parent, _folders, names in os.walk(root):
        for name in names:
            path = os.path.join(parent, name)
            if path not in wanted and not name.startswith(".arrived"):
                yield path


def space(root):
    """Free bytes for a folder, and which file system that is."""
    while not os.path.exists(root):
        root = os.path.dirname(root)
    status = os.statvfs(root)
    return {"device": os.stat(root).st_dev, "free": status.f_bavail * status.f_frsize}


def look(asked):
    """How many bytes of each file are here already; -1: all, and right."""
    items, write = asked["files"], asked["write"]
    record = read_record(asked["record"])
    before = dict(record)
    have = []
    for item in items:
        if any(os.path.exists(path) for path in item["unless"]) or there(item, record):
            have.append(-1)
        else:
            size = size_of(part_of(item))
            have.append(size if 0 <= size <= item["size"] else 0)
    removed = 0
    for root in asked["prune"]:
        for path in list(strays(root, items)):
            removed += 1
            if write:
                os.unlink(path)
                record.pop(path, None)
    if write and record != before:
        write_record(asked["record"], record)
    return {"have": have, "removed": removed, "space": {item["root"]: space(item["root"]) for item in items}}


def take(asked, data):
    """Write segments of files; those that are whole are checked and get their names.

    A controller that was killed may leave a process behind that still sends. Both write the same bytes to the same
    places, one at a time.
    """
    folder(os.path.dirname(asked["record"]))
    with open(asked["record"] + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = read_record(asked["record"])
        wrong, begin = [], 0
        for item in asked["segments"]:
            segment = data[begin : begin + item["length"]]
            begin += item["length"]
            found = "" if there(item, record) else put(item, segment)
            if found == item["sha256"]:
                finish(item)
                record[place_of(item)] = note_of(place_of(item), found)
            elif found:
                # Nobody knows which byte is wrong, and images are large.
                if os.path.exists(part_of(item)):
                    os.unlink(part_of(item))
                wrong.append([item["path"], found])
        write_record(asked["record"], record)
    if len(data) < begin:
        raise EOFError("the connection ended after %d of %d bytes" % (len(data), begin))
    return {"wrong": wrong}


def put(item, segment):
    """Write one segment; the checksum of a file that is whole now, or nothing."""
    part = part_of(item)
    if item["at"] > max(size_of(part), 0):
        return "its beginning is gone"
    folder(os.path.dirname(part))
    with open(part, "r+b" if os.path.exists(part) else "w+b") as handle:
        handle.seek(item["at"])
        handle.write(segment)
        handle.flush()
        os.fsync(handle.fileno())
    return sha256_of(part) if item["at"] + len(segment) >= item["size"] else ""


def finish(item):
    """Give a file its name."""
    part, place = part_of(item), place_of(item)
    folder(os.path.dirname(place))
    os.chmod(part, 0o644)
    os.rename(part, place)


def main():
    """Entry point."""
    stream = sys.stdin.buffer
    asked = json.loads(stream.readline().decode("utf-8"))
    try:
        # All of it before anything is locked: a connection may hang in the middle.
        answer = look(asked) if asked["do"] == "look" else take(asked, memoryview(stream.read()))
    except (OSError, EOFError) as error:
        answer = {"error": str(error)}
    print(MARK + json.dumps(answer))


if __name__ == "__main__":
    main()
