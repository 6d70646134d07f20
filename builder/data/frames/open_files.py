"""Files of the cache that a process holds open: a bounded number, the least recently used ones are closed."""

from __future__ import annotations

import os
import resource
import weakref
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from threading import RLock

_MOST = 512


class OpenFile:
    """Descriptor of a file, open for reading as long as the object exists."""

    def __init__(self, path: Path) -> None:
        """Open the file, or raise OSError."""
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        self.size = os.fstat(self.descriptor).st_size

    def read_into(self, out: memoryview, start: int) -> None:
        """Fill a buffer with the bytes from `start`. Raise OSError if the file ends before."""
        left = out
        while left:
            done = os.preadv(self.descriptor, [left], start + len(out) - len(left))
            if done == 0:
                raise OSError(f"the file ends before byte {start + len(out)}")
            left = left[done:]


class OpenFiles:
    """The files that a process holds open, at most a quarter of the descriptors that it may have.

    The garbage collector may end a store, which closes its files, at any allocation: within `get` too.
    """

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock, self._held = RLock(), OrderedDict[Path, OpenFile]()

    def get(self, path: Path) -> OpenFile:
        """Return an open file, which stays open while the caller holds it, or raise OSError."""
        with self._lock:
            held = self._held.pop(path, None)
            if held is not None:
                self._held[path] = held  # the last to be closed
                return held
        opened = OpenFile(path)
        most = min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        with self._lock:
            self._held[path] = opened
            with suppress(KeyError):
                while len(self._held) > max(most, 1):
                    self._held.popitem(last=False)
        return opened

    def close(self, path: Path) -> None:
        """Close a file, unless another thread reads it: then, when it is done."""
        with self._lock:
            self._held.pop(path, None)


open_files = OpenFiles()
