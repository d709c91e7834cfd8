"""The protections that a machine offers, best first, and their command lines."""

import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dlm.eval.sandbox.judge import BOOT
from dlm.eval.sandbox.outcome import Limits

BUBBLEWRAP, UNSHARE, UNPROTECTED = "bubblewrap", "unshare", "unprotected"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # makes scores reproducible
    "PYTHONSAFEPATH": "1",
}
PYTHON_FLAGS = ("-s", "-S", "-B", "-c", BOOT)
FIRST_USER, USERS = 61184, 4336  # ids without accounts: systemd's own for services
SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # in the root folder, besides /usr
DEVICES = ("null", "zero", "full", "random", "urandom")
TOOLS = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter for the sandbox."""

    path: str
    folder: str = ""  # its installation, if not in /usr

    def version(self) -> str:
        """Implementation and version as text."""
        code = "import platform as p; print(p.python_implementation(), p.python_version())"
        command = [self.path, "-I", "-S", "-B", "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@dataclass(frozen=True, slots=True)
class Rung:
    """One protection with one interpreter."""

    name: str
    python: Python
    tools: dict[str, str]  # absolute paths by name
    root: bool  # whether this process may change its user

    def command(self, limits: Limits) -> list[str]:
        """The command line of one sandbox; for root, under its own user id."""
        inner = [self.python.path, *PYTHON_FLAGS]
        if self.name == UNPROTECTED:
            return inner
        user = FIRST_USER + secrets.randbelow(USERS)
        if self.name == BUBBLEWRAP:
            return [*self._dropped(user), *self._bubblewrap(limits), "--", *inner]
        return [*self._unshared(), self._script(limits), "sh", *self._dropped(user), *inner]

    def _dropped(self, user: int) -> list[str]:
        """Switch permanently to a user without privileges."""
        rights = ["--no-new-privs", "--pdeathsig", "SIGKILL"]
        if self.root and self.name == UNSHARE:
            rights += ["--bounding-set=-all", "--inh-caps=-all"]
        if self.root:
            rights += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        elif self.name == BUBBLEWRAP:
            return []
        line = [self.tools["setpriv"], *rights]
        # Root of a namespace owns /proc of a hidden process, so the programs must not be root.
        return line if self.root else ["unshare", f"--map-user={user}", *line]

    def _bubblewrap(self, limits: Limits) -> list[str]:
        """Create namespaces and a separate file system."""
        size = str(limits.file_bytes)
        line = [self.tools["bwrap"], "--unshare-user", "--unshare-all", "--disable-userns"]
        line += ["--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL"]
        line += ["--hostname", "sandbox", "--clearenv"]
        for name, value in ENVIRONMENT.items():
            line += ["--setenv", name, value]
        line += ["--ro-bind", "/usr", "/usr"]
        for name, target in system():
            line += ["--symlink", target] if target else ["--ro-bind", f"/{name}"]
            line += [f"/{name}"]
        if self.python.folder:
            line += ["--ro-bind", self.python.folder, self.python.folder]
        line += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm"]
        line += ["--remount-ro", "/dev", "--size", size, "--tmpfs", "/tmp"]
        return [*line, "--remount-ro", "/", "--chdir", "/tmp"]

    def _unshared(self) -> list[str]:
        """Create namespaces; the script after this command line creates the file system."""
        line = [self.tools["setpriv"], "--pdeathsig", "SIGKILL", self.tools["unshare"]]
        if not self.root:
            line += ["--user", "--map-root-user"]
        line += ["--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts", "--cgroup"]
        return [*line, "--mount", "--propagation", "private", self.tools["sh"], "-euc"]

    def _script(self, limits: Limits) -> str:
        """A shell script that builds a minimal root and then runs its arguments."""
        size = limits.file_bytes
        lines = [
            f"PATH={TOOLS}",
            f"mount -t tmpfs -o size={size},mode=0755,nosuid,nodev tmpfs /tmp",
            "cd /tmp",
            "mkdir usr proc dev tmp old",
            bound("/usr"),
        ]
        for name, target in system():
            lines += [f"ln -s {target} {name}"] if target else [f"mkdir {name}", bound(f"/{name}")]
        if self.python.folder:
            lines += [
                f"mkdir -p {shlex.quote('.' + self.python.folder)}",
                bound(self.python.folder),
            ]
        lines += [f"touch dev/{name}; mount --bind /dev/{name} dev/{name}" for name in DEVICES]
        scratch = f"mount -t tmpfs -o size={size},mode=1777,nosuid,nodev tmpfs"
        lines += [
            "mount -t proc -o nosuid,nodev,noexec proc proc",
            f"{scratch} tmp",
            "mkdir dev/shm",
            f"{scratch} dev/shm",
            "pivot_root . old",
            "umount -l old",
            "rmdir old",
            "mount -o remount,bind,ro /",
            "cd /tmp",
            "unset OLDPWD",
            f"export {' '.join(shlex.quote(f'{k}={v}') for k, v in ENVIRONMENT.items())}",
            'exec "$@"',
        ]
        return "\n".join(lines)


def bound(folder: str) -> str:
    """Shell command: mount a folder of the machine read-only."""
    there, here = shlex.quote(folder), shlex.quote("." + folder)
    return f"mount --bind {there} {here}; mount -o remount,bind,ro,nosuid,nodev {here}"


def system() -> list[tuple[str, str]]:
    """The folders of the root that contain programs, and their targets if they are links."""
    found = [(name, Path("/", name)) for name in SYSTEM]
    return [
        (name, os.readlink(path).lstrip("/") if path.is_symlink() else "")
        for name, path in found
        if path.exists()
    ]


def pythons() -> list[Python]:
    """Interpreters that a sandbox may be able to execute, likely ones first."""
    found = [Python(f"{folder}/python3") for folder in ("/usr/bin", "/usr/local/bin")]
    folder = Path(sys.base_prefix).resolve()
    near = (Path.home(), Path.cwd())
    # A folder that contains the user's own would expose it to the program.
    if not folder.is_relative_to("/usr") and not any(p.is_relative_to(folder) for p in near):
        own = folder / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        found.append(Python(str(own), str(folder)))
    return [each for each in found if os.access(each.path, os.X_OK)]


def rungs() -> Iterator[Rung]:
    """The protections that may work here, best first; only trying shows whether they do."""
    root = os.geteuid() == 0
    needed = {BUBBLEWRAP: ["bwrap"], UNSHARE: ["unshare", "setpriv", "sh"]}
    if root:
        needed[BUBBLEWRAP].append("setpriv")
    for name, tools in needed.items():
        paths = {tool: path for tool in tools if (path := shutil.which(tool))}
        if len(paths) == len(tools):
            yield from (Rung(name, python, paths, root) for python in pythons())


def unprotected() -> Rung:
    """The interpreter of this process without any protection."""
    return Rung(UNPROTECTED, Python(sys.executable), {}, root=False)
