"""Preparing a container's files so that on disk their ids stay 0-based.

Nothing is chowned. In a private mount namespace, which ends with the runtime's process and takes
everything here along, each layer of the root file system and each bind mount is cloned with its
owners shifted into the container's range (idmapped, mount_setattr(2)), and what was cloned is put
together again under one tmpfs, the *stage*::

    <stage>/rootfs      the container's root file system
    <stage>/layers/     clones of an overlay's layers, 0 is the topmost
    <stage>/upper/      clone of the directory that holds the overlay's upper layer
    <stage>/binds/      clones of bind mounts' sources
    <stage>/config.json the edited spec, bound over the bundle's own

The stage is reachable by the container's root, which the engine's own directories are not.
"""

from __future__ import annotations

import errno
import os
import stat

from sysfsd import jsontext
from sysfsd.errors import Refused
from sysfsd.kernel import mounts, syscalls
from sysfsd.runtime import spec as specs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sysfsd.runtime import Spec
    from sysfsd.runtime.spec import IdRange

OWN_DIRECTORY = "sysfsd"
"""Our directory beside an overlay's upper layer: the engine removes the whole with the container,
so that what is in there lives exactly as long as the container's root file system does."""

# Options of overlayfs that change what the layers mean; the rest is the engine's own business
# (Documentation/filesystems/overlayfs.rst).
_OVERLAY_OPTIONS = frozenset({"metacopy", "redirect_dir", "userxattr", "volatile", "xino"})


class Stage:
    """The stage of one container, under ``directory``, an existing directory of the host."""

    def __init__(self, directory: str, ids: IdRange | None, owner: IdRange | None) -> None:
        """Enter a private mount namespace and mount the stage.

        ``ids`` is ``None`` for a container whose engine shifted the owners itself; ``owner`` are
        then the ids it shifted them to, if we know them. ``overlays`` are, once the root file
        system is one, roots of the engine's overlay and of the container's, over the same layers.
        """
        self.directory = directory
        self._ids = ids
        self._owner = owner
        self._mounts = mounts.read_mounts()
        # runc starts an exec's helper with the root file system's path as its working directory
        # (libcontainer, commandTemplate): on the host there must be something at that path, too.
        self._make_directory("rootfs")
        mounts.make_private_namespace()
        syscalls.mount(
            "sysfsd", directory, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755"
        )
        self.overlays: list[int] = []
        self._userns = None if ids is None else mounts.user_namespace(ids.uid_map, ids.gid_map)

    def root_filesystem(self, root: str) -> str:
        """Put the root file system at ``root`` on the stage and return its new path.

        Raises ``Refused`` when its file system can't be idmapped.
        """
        if self._userns is None:
            return root
        target = self._make_directory("rootfs")
        mount = mounts.mount_at(self._mounts, root)
        if mount is not None and mount.fstype == "overlay":
            engines = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._restack(mount)
            containers = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.overlays = [engines, containers]
            self._check_owner(containers, root)
            return target
        tree = mounts.clone_idmapped(root, self._userns, recursive=True)
        if tree is None:
            kind = mount.fstype if mount is not None else "file"
            raise Refused(
                f"the root file system {root} is on a {kind} system that can't be idmapped: use "
                "overlay2 on ext4, xfs or btrfs, or userns-remap in the engine"
            )
        mounts.place(tree, target)
        return target

    def copy_up(self, directories: list[str]) -> None:
        """Bring directories into the overlay's upper layer before they are in use.

        One that is in use keeps the container's overlay from noticing that `docker cp` brought it
        there: nobody could create a file in it any more (ENOTEMPTY). Setting its mode to what it is
        makes overlayfs copy a directory up, without what is in it. Only for an overlay.
        """
        engines, containers = self.overlays
        for path in directories:
            directory = _open_beneath(containers, path)
            if directory is not None:
                os.fchmod(directory, stat.S_IMODE(os.fstat(directory).st_mode))
                os.close(directory)
        # The engine has looked around in there before us. What it knows is the lower layers', and
        # its copying up would put a directory of its own in the place of ours.
        syscalls.reconfigure(engines)

    def binds(self, bundle: str, entries: list[Spec]) -> None:
        """Put the sources of bind mounts on the stage and change the entries to their new paths.

        A relative source starts at the bundle (runtime-spec, config.md "Mounts"). What can't be
        idmapped (procfs, FUSE, another overlay) keeps its source: the container sees its owners as
        nobody. All clones are made before any is placed.
        """
        if self._userns is None:
            return
        shifted = []
        for entry in entries:
            if specs.is_bind(entry) and entry.get("source"):
                source = os.path.join(bundle, entry["source"])
                tree = mounts.clone_idmapped(
                    source, self._userns, recursive=specs.is_recursive_bind(entry)
                )
                if tree is not None:
                    shifted.append((entry, source, tree))
        base = self._make_directory("binds")
        for number, (entry, source, tree) in enumerate(shifted):
            target = os.path.join(base, str(number))
            if os.path.isdir(source):
                os.mkdir(target)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
            mounts.place(tree, target)
            entry["source"] = target

    def docker_data(self, root: str) -> str | None:
        """Make the backing directory for ``/var/lib/docker`` and return its path on the stage.

        It lies beside the upper layer of the overlay mounted at ``root``, and starts with what the
        image has at that place, as an engine's volume does. ``None`` when ``root`` is no overlay
        and will do by itself, or when there is nowhere to put it.
        """
        mount = mounts.mount_at(self._mounts, root)
        if mount is None or mount.fstype != "overlay":
            return None
        _, options = mounts.parse_overlay(mount.options)
        if "upperdir" not in options or (self._userns is None and self._owner is None):
            return None
        holder = os.path.dirname(self._absolute(options["upperdir"], mount))
        backing = os.path.join(holder, OWN_DIRECTORY, "docker")
        if not os.path.isdir(backing):
            self._fill(backing, root)
        tree: int | None
        if self._userns is None:
            tree = syscalls.open_tree(syscalls.AT_FDCWD, backing)
        else:
            tree = mounts.clone_idmapped(backing, self._userns, recursive=False)
        if tree is None:
            return None
        target = self._make_directory("docker")
        mounts.place(tree, target)
        return target

    def _fill(self, backing: str, root: str) -> None:
        """Make a backing directory whole: what is there under its final name is complete."""
        unfinished = f"{backing}.new"
        os.makedirs(unfinished, mode=0o711, exist_ok=True)
        if self._owner is not None and self._userns is None:
            os.chown(unfinished, self._owner.uid, self._owner.gid)
        base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            content = _open_beneath(base, specs.DOCKER_DATA)
        finally:
            os.close(base)
        if content is not None:
            try:
                if os.listdir(content):
                    _copy(content, unfinished)
            finally:
                os.close(content)
        os.rename(unfinished, backing)

    def show_spec(self, spec: Spec) -> None:
        """Let the runtime and its hooks read ``spec`` as config.json of the bundle we are in.

        Only in our mount namespace: the bundle itself stays as its owner wrote it, and with it
        whatever else reads it.
        """
        path = os.path.join(self.directory, "config.json")
        with open(path, "x", encoding="utf-8") as file:
            file.write(jsontext.dumps(spec))
        os.chmod(path, 0o600)
        mounts.place(syscalls.open_tree(syscalls.AT_FDCWD, path), "config.json")

    def _restack(self, mount: mounts.Mount) -> None:
        """Mount an overlay like ``mount`` at ``rootfs``, over shifted clones of its layers.

        An overlay itself can't be idmapped. Its layers go by short relative names: all options
        together must fit one page (mount(2)), and there may be 128 layers.
        """
        assert self._userns is not None
        assert self._ids is not None
        lowers, options = mounts.parse_overlay(mount.options)
        layers = self._make_directory("layers")
        for number, lower in enumerate(lowers):
            self._place_layer(self._absolute(lower, mount), os.path.join(layers, str(number)))
        parts = ["lowerdir=" + ":".join(f"layers/{number}" for number in range(len(lowers)))]
        if "upperdir" in options:
            parts += self._place_upper(self._absolute(options["upperdir"], mount))
        parts += [
            f"{name}={value}" if value else name
            for name, value in options.items()
            if name in _OVERLAY_OPTIONS
        ]
        # The engine's own overlay keeps the same upper layer in use, for `docker cp`. Without the
        # index that is allowed, but neither sees what the other changes in what it has cached
        # (overlayfs.rst, "Sharing and copying layers"): see coherence.py.
        parts.append("index=off")
        home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.chdir(self.directory)
        # overlayfs acts on its layers as whoever mounts it. Host ids have no place in the shifted
        # upper layer (EOVERFLOW), so mount it as the container's root.
        syscalls.set_fs_ids(self._ids.uid, self._ids.gid)
        try:
            syscalls.mount("overlay", "rootfs", "overlay", 0, ",".join(parts))
        finally:
            syscalls.set_fs_ids(0, 0)
            os.fchdir(home)
            os.close(home)

    def _check_owner(self, directory: int, root: str) -> None:
        """Refuse layers whose ids are beyond the container's: nobody could write to them."""
        assert self._ids is not None
        if not 0 <= os.fstat(directory).st_uid - self._ids.uid < self._ids.size:
            raise Refused(
                f"the files of {root} belong to ids that the container does not have: the engine "
                "shifted them itself (userns-remap); leave out --userns=host"
            )

    def _place_layer(self, path: str, target: str) -> None:
        assert self._userns is not None
        tree = mounts.clone_idmapped(path, self._userns, recursive=False)
        if tree is None:
            raise Refused(
                f"the layer {path} is on a file system that can't be idmapped: keep the engine's "
                "data on ext4, xfs or btrfs (and Linux 5.19 or later), or use its userns-remap"
            )
        os.mkdir(target)
        mounts.place(tree, target)

    def _place_upper(self, upper: str) -> list[str]:
        """Clone the directory that holds the upper layer, and give the overlay a work directory.

        One of our own: two overlays must not share one. It must be on the upper layer's mount.
        """
        holder, name = os.path.split(upper)
        os.makedirs(os.path.join(holder, OWN_DIRECTORY, "work"), mode=0o711, exist_ok=True)
        self._place_layer(holder, os.path.join(self.directory, "upper"))
        return [f"upperdir=upper/{name}", f"workdir=upper/{OWN_DIRECTORY}/work"]

    @staticmethod
    def _absolute(path: str, mount: mounts.Mount) -> str:
        """Resolve a layer's path.

        Docker mounts with paths relative to its driver's directory, two levels above the mount
        point, when absolute ones would not fit one page.
        """
        base = os.path.dirname(os.path.dirname(mount.point))
        absolute = os.path.join(base, path)
        if not os.path.isdir(absolute):
            raise Refused(f"the layer {path} of {mount.point} is not where the engine keeps layers")
        return absolute

    def _make_directory(self, name: str) -> str:
        path = os.path.join(self.directory, name)
        try:
            os.mkdir(path)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
        return path


def _open_beneath(root: int, path: str) -> int | None:
    """Open a directory of an image, following nothing out of it; ``None`` when it has none."""
    try:
        return syscalls.openat2(
            root, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, syscalls.RESOLVE_IN_ROOT
        )
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return None
        raise


def _copy(directory: int, target: str) -> None:
    """Copy a directory's content with all its metadata."""
    import subprocess  # noqa: PLC0415 - for the rare image that brings layers along

    source = f"/proc/self/fd/{directory}/."
    done = subprocess.run(
        ["/bin/cp", "-a", "--reflink=auto", source, target],
        pass_fds=[directory],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Refused(f"{specs.DOCKER_DATA} of the image can't be copied: {done.stderr.strip()}")
