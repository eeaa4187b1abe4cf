"""What both flavours of the file system share, and where errors become an errno.

pyfuse3 answers ``FUSEError`` to the caller; any other exception would end the mount. So every
handler of every subclass is wrapped when the class is made, and none can be forgotten.
"""

from __future__ import annotations

import errno
import functools
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pyfuse3
import structlog

from sysfsd.errors import NoSuchContainer, NoSuchView

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sysfsd.filesystem.tree import Node
    from sysfsd.log import RateLimit

_log = structlog.get_logger(__name__)

T = TypeVar("T")

_ERRNO_END = 512

STATIC_TIMEOUT = 3600.0
"""Seconds that the kernel may keep what never changes: names inside a container's subtree."""

_HANDLERS = frozenset(
    """
    lookup getattr setattr readlink mknod mkdir unlink rmdir symlink rename link open read write
    flush release fsync opendir readdir releasedir fsyncdir statfs setxattr getxattr listxattr
    removexattr access create poll
    """.split()
)


def errno_of(error: Exception) -> int | None:
    """The errno that a caller gets for an error; None for one that should not have happened."""
    if isinstance(error, NoSuchContainer):
        return errno.ESTALE
    if isinstance(error, NoSuchView):
        return errno.ENOENT
    if isinstance(error, OSError):
        # The kernel takes no others in a reply (fuse_dev_do_write), but has some for itself.
        return error.errno if error.errno and 0 < error.errno < _ERRNO_END else errno.EIO
    return None


def _guarded(handler: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    @functools.wraps(handler)
    async def guarded(self: Operations, *arguments: Any) -> T:
        try:
            return await handler(self, *arguments)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            number = errno_of(error)
            if number is None:
                self.failed(handler.__name__, error)
                number = errno.EIO
            raise pyfuse3.FUSEError(number) from error

    return guarded


class Operations(pyfuse3.Operations):
    """A file system that nobody can change.

    Handlers left out answer ENOSYS, which the kernel remembers and asks no more: flush, access,
    extended attributes.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self.failures = 0
        """Handlers that failed in a way that nobody thought of."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in _HANDLERS & cls.__dict__.keys():
            setattr(cls, name, _guarded(cls.__dict__[name]))

    def failed(self, handler: str, error: Exception) -> None:
        """Take note of a bug."""
        self.failures += 1
        suppressed = self._limit.passes(("handler", handler))
        if suppressed is not None:
            _log.error("request failed", handler=handler, suppressed=suppressed, exc_info=error)

    def stacktrace(self) -> None:
        """Do nothing: pyfuse3's debugging hook, which a container could trigger."""

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Like procfs: no blocks, no files, but names."""
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_namemax = 255
        return answer

    @staticmethod
    def target_of(node: Node) -> bytes:
        """What readlink(2) answers."""
        if node.link is None:
            raise pyfuse3.FUSEError(errno.EINVAL)
        return node.link.encode()

    async def setattr(self, *arguments: Any) -> Any:
        """Neither truncate (the shell's ``>``) nor change owner, mode or times."""
        self.refuse_change(arguments[2])

    @staticmethod
    def refuse_change(fields: pyfuse3.SetattrFields) -> NoReturn:
        """Say no to setattr."""
        raise pyfuse3.FUSEError(errno.EACCES if fields.update_size else errno.EPERM)

    async def write(self, *_: Any) -> Any:
        """Refuse: files are 0444, but root's capabilities get it past open(2)."""
        raise pyfuse3.FUSEError(errno.EACCES)

    def refuse_name(self, directory: int) -> NoReturn:
        """Say no to a new name in a directory, which is given by its inode."""
        raise pyfuse3.FUSEError(errno.EPERM)

    async def create(self, *arguments: Any) -> Any:
        """Refuse."""
        self.refuse_name(arguments[0])

    async def mknod(self, *arguments: Any) -> Any:
        """Refuse."""
        self.refuse_name(arguments[0])

    async def mkdir(self, *arguments: Any) -> Any:
        """Refuse."""
        self.refuse_name(arguments[0])

    async def symlink(self, *arguments: Any) -> Any:
        """Refuse."""
        self.refuse_name(arguments[0])

    async def link(self, *arguments: Any) -> Any:
        """Refuse."""
        self.refuse_name(arguments[1])

    def refuse_removal(self, directory: int) -> NoReturn:
        """Say no to a name's going away from a directory."""
        raise pyfuse3.FUSEError(errno.EPERM)

    async def unlink(self, *arguments: Any) -> Any:
        """Refuse."""
        self.refuse_removal(arguments[0])

    async def rmdir(self, *arguments: Any) -> Any:
        """Refuse."""
        self.refuse_removal(arguments[0])

    async def rename(self, *arguments: Any) -> Any:
        """Refuse."""
        self.refuse_removal(arguments[0])
