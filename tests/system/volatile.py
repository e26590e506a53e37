#!/usr/bin/env python3
"""A file system (FUSE; needs root, libfuse and `pip install mfusepy`) that keeps nothing but what was synced: a file's bytes
when the file was, a directory's entries when the directory was. Setting its attribute user.cut to a SEED is a loss of
power, after which nothing works; setting user.power brings back what the disk has. With SEED 0 that is what was synced and no more; with
another number also some of what was not, as it falls: names in a state of their own each, pages of a file here and there.
With --lie a sync does nothing, to see that a test notices."""

import errno
import functools
import random
import stat
import sys
import time

import mfusepy

PAGE = 4096


class File:
    """Bytes as programs see them, as the disk has them for sure, and what was done to them since."""

    def __init__(self):
        self.data, self.kept, self.since, self.changed, self.links = bytearray(), b"", [], time.time_ns(), 1

    def write(self, offset, piece):
        if len(self.data) < offset:
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(piece)] = piece
        self.since += [(offset + at, piece[at : at + PAGE]) for at in range(0, len(piece), PAGE)]
        self.changed = time.time_ns()

    def truncate(self, length):
        del self.data[length:]
        self.data.extend(bytes(length - len(self.data)))
        self.since.append((length, None))
        self.changed = time.time_ns()

    def sync(self):
        self.kept, self.since = bytes(self.data), []

    def lose(self, dice):
        since, self.data, self.since = self.since, bytearray(self.kept), []
        for offset, piece in since:
            if dice and dice.random() < 0.5:
                self.truncate(offset) if piece is None else self.write(offset, piece)
        self.sync()


class Folder:
    """Entries as programs see them, as the disk has them for sure, and what each name was since."""

    def __init__(self):
        self.entries, self.kept, self.since, self.changed = {}, {}, [], time.time_ns()

    def set(self, name, node):
        if node is None:
            del self.entries[name]
        else:
            self.entries[name] = node
        self.since.append((name, node))
        self.changed = time.time_ns()

    def sync(self):
        self.kept, self.since = dict(self.entries), []

    def lose(self, dice):
        since, self.entries = self.since, dict(self.kept)
        for name in sorted({name for name, _ in since}) if dice else ():
            states = [self.kept.get(name), *(node for changed, node in since if changed == name)]
            node = dice.choice(states)
            self.entries.pop(name, None) if node is None else self.entries.__setitem__(name, node)
        self.sync()
        for node in self.entries.values():
            node.lose(dice)


def powered(operation):
    """Nothing works without power."""
    @functools.wraps(operation)
    def wrapped(self, *args):
        if self.off:
            raise mfusepy.FuseOSError(errno.EIO)
        return operation(self, *args)

    return wrapped


class Volatile(mfusepy.Operations):
    use_ns = True

    def __init__(self, lie):
        self.root, self.lie, self.off, self.seed = Folder(), lie, False, 0
        self.open_nodes, self.next = {}, 1

    def find(self, path):
        node = self.root
        for name in filter(None, path.split("/")):
            if not isinstance(node, Folder):
                raise mfusepy.FuseOSError(errno.ENOTDIR)
            if name not in node.entries:
                raise mfusepy.FuseOSError(errno.ENOENT)
            node = node.entries[name]
        return node

    def parent(self, path):
        folder, _, name = path.rpartition("/")
        return self.find(folder), name

    def opened(self, node):
        self.next += 1
        self.open_nodes[self.next] = node
        return self.next

    @powered
    def getattr(self, path, fh=None):
        node = self.open_nodes[fh] if fh in self.open_nodes else self.find(path)
        common = {"st_ctime": node.changed, "st_mtime": node.changed, "st_atime": node.changed, "st_uid": 0, "st_gid": 0}
        if isinstance(node, Folder):
            return {**common, "st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        return {**common, "st_mode": stat.S_IFREG | 0o644, "st_nlink": node.links, "st_size": len(node.data)}

    @powered
    def readdir(self, path, fh):
        return [".", "..", *self.find(path).entries]

    @powered
    def mkdir(self, path, mode):
        folder, name = self.parent(path)
        folder.set(name, Folder())
        return 0

    def setxattr(self, path, name, value, *_):
        if name == "user.cut":
            self.off, self.seed = True, int(value)
        elif name == "user.power":
            self.root.lose(random.Random(self.seed) if self.seed else None)
            self.off = False
        return 0

    @powered
    def create(self, path, mode, fi=None):
        folder, name = self.parent(path)
        folder.set(name, File())
        return self.opened(folder.entries[name])

    @powered
    def open(self, path, flags):
        return self.opened(self.find(path))

    @powered
    def opendir(self, path):
        return self.opened(self.find(path))

    def release(self, path, fh):
        self.open_nodes.pop(fh, None)
        return 0

    releasedir = release

    @powered
    def read(self, path, size, offset, fh):
        return bytes(self.open_nodes[fh].data[offset : offset + size])

    @powered
    def write(self, path, data, offset, fh):
        self.open_nodes[fh].write(offset, data)
        return len(data)

    @powered
    def truncate(self, path, length, fh=None):
        (self.open_nodes[fh] if fh in self.open_nodes else self.find(path)).truncate(length)
        return 0

    @powered
    def fsync(self, path, datasync, fh):
        if not self.lie:
            self.open_nodes[fh].sync()
        return 0

    fsyncdir = fsync

    @powered
    def link(self, target, source):
        node = self.find(source)
        folder, name = self.parent(target)
        folder.set(name, node)
        node.links += 1
        return 0

    @powered
    def unlink(self, path):
        folder, name = self.parent(path)
        folder.entries[name].links -= 1
        folder.set(name, None)
        return 0

    @powered
    def rmdir(self, path):
        folder, name = self.parent(path)
        if folder.entries[name].entries:
            raise mfusepy.FuseOSError(errno.ENOTEMPTY)
        folder.set(name, None)
        return 0

    @powered
    def rename(self, old, new):
        (source, name), (folder, other) = self.parent(old), self.parent(new)
        folder.set(other, source.entries[name])
        source.set(name, None)
        return 0

    def statfs(self, path):
        return {"f_bsize": PAGE, "f_frsize": PAGE, "f_blocks": 1 << 24, "f_bfree": 1 << 23, "f_bavail": 1 << 23}

    chmod = chown = utimens = lambda *_: 0


if __name__ == "__main__":
    mfusepy.FUSE(Volatile("--lie" in sys.argv), sys.argv[1], foreground=True, nothreads=True, attr_timeout=0, entry_timeout=0)
