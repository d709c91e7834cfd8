"""What a program can see and change of the machine: files, the environment, networks."""

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Tell = Callable[..., str]

READ = """
import os
def f():
    os.makedirs("/tmp/here", exist_ok=True)
    up = "../" * 12 + PATH
    for link in (PATH, up):
        try: os.symlink(link, "/tmp/here/link" + str(len(link)))
        except OSError: pass
    try: os.link(PATH, "/tmp/here/hard")
    except OSError: pass
    ways = [PATH, up, "/proc/1/root" + PATH, "/proc/self/root" + PATH, "/proc/1/cwd" + PATH,
            "/old" + PATH, "/tmp/here/hard"]
    ways += ["/tmp/here/" + each for each in os.listdir("/tmp/here")]
    for way in ways:
        try: return open(way).read()[:7]
        except OSError: pass
    return "nothing"
"""


def test_files_cannot_be_read(told: Tell, plainly: Tell, open_folder: Path) -> None:
    path = str(open_folder / "secret")
    assert plainly(READ.replace("/tmp/here", str(open_folder / "here")), PATH=path) == ("reached")
    for each in (path, __file__, "/etc/passwd", "/etc/hostname"):
        assert told(READ, PATH=each) == "nothing"


def test_folders_cannot_be_listed(told: Tell, plainly: Tell, open_folder: Path) -> None:
    solution = """
    import os
    def f():
        try: return " ".join(os.listdir(PATH))
        except OSError: return "nothing"
    """
    assert "secret" in plainly(solution, PATH=str(open_folder))
    for each in (open_folder, Path.home(), Path.cwd(), Path(__file__).parent, "/etc", "/root"):
        assert told(solution, PATH=str(each)) == "nothing"
    assert told(solution, PATH="/tmp") == ""


def test_files_cannot_be_written_or_deleted(told: Tell, open_folder: Path) -> None:
    solution = """
    import os, shutil
    def f():
        done = []
        places = [FOLDER, "/", "/usr/bin", "/var/tmp", "/home", "/root", "/etc", "/dev", "/proc"]
        for folder in places:
            try: open(folder + "/" + MARKER, "w").close(); done.append(folder)
            except OSError: pass
        for folder in ("/tmp", "/dev/shm"): open(folder + "/" + MARKER, "w").close()
        shutil.rmtree(FOLDER, ignore_errors=True)
        for folder in ("/usr/bin", "/bin", "/etc"): shutil.rmtree(folder, ignore_errors=True)
        return " ".join(done)
    """
    assert told(solution, FOLDER=str(open_folder)) == ""
    assert [each.name for each in open_folder.iterdir()] == ["secret"]
    assert (open_folder / "secret").read_text() == "reached"
    assert Path("/usr/bin/env").exists()


def test_nothing_is_kept_from_one_program_to_the_next(told: Tell) -> None:
    solution = """
    import os
    def f():
        found = [each for folder in ("/tmp", "/dev/shm") for each in os.listdir(folder)]
        for folder in ("/tmp", "/dev/shm"): open(folder + "/" + MARKER, "w").close()
        return " ".join(found)
    """
    assert [told(solution) for _ in range(2)] == ["", ""]


def test_the_environment_is_empty(
    told: Tell, plainly: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "reached")
    solution = """
    import glob, os
    def f():
        text = repr(dict(os.environ))
        for path in glob.glob("/proc/*/environ"):
            try: text += open(path).read()
            except OSError: pass
        return "reached" if "reached" in text else " ".join(sorted(os.environ))
    """
    assert plainly(solution) == "reached"
    names = set(told(solution).split())
    assert names <= {"PATH", "HOME", "LANG", "LC_CTYPE", "PWD", "PYTHONHASHSEED", "PYTHONSAFEPATH"}


CONNECT = """
import socket
def f():
    kind = socket.SOCK_DGRAM if KIND == "udp" else socket.SOCK_STREAM
    try:
        way = socket.socket(socket.AF_UNIX if isinstance(TO, str) else socket.AF_INET, kind)
        way.settimeout(2)
        way.connect(TO)
        way.send(b"reached")
    except OSError: return "nothing"
    return "reached"
"""


@pytest.fixture(params=["tcp", "udp", "unix", "abstract"])
def listener(request: pytest.FixtureRequest, open_folder: Path) -> Iterator[tuple[str, object]]:
    """A kind of socket of this process and where it can be reached."""
    kind = request.param
    family = socket.AF_INET if kind in ("tcp", "udp") else socket.AF_UNIX
    address: object = ("127.0.0.1", 0)
    if family == socket.AF_UNIX:
        address = str(open_folder / "socket") if kind == "unix" else "\0" + secrets.token_hex(8)
    listening = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    with listening:
        listening.bind(address)  # type: ignore[arg-type]
        if kind == "unix":
            (open_folder / "socket").chmod(0o777)
        if kind != "udp":
            listening.listen(8)
        name = listening.getsockname()
        yield kind, name.decode("latin1") if isinstance(name, bytes) else name


def test_no_socket_can_be_reached(told: Tell, plainly: Tell, listener: tuple[str, object]) -> None:
    kind, address = listener
    assert plainly(CONNECT, KIND=kind, TO=address) == "reached"
    answer = told(CONNECT, KIND=kind, TO=address)
    # A datagram to a network without anyone may be sent, but arrives nowhere.
    assert answer == "nothing"


def test_only_local_sockets_can_be_made(told: Tell) -> None:
    solution = """
    import socket
    def f():
        made = []
        for family in range(64):
            for kind in (1, 2, 3, 5):
                try: socket.socket(family, kind); made.append(family)
                except OSError: pass
        return " ".join(map(str, sorted(set(made))))
    """
    assert told(solution) == "1"


def test_every_namespace_is_its_own(told: Tell) -> None:
    solution = """
    import os
    def f(): return " ".join(os.readlink("/proc/self/ns/" + name) for name in NAMES)
    """
    names = ["net", "pid", "mnt", "ipc", "uts", "cgroup"]
    theirs = told(solution, NAMES=names).split()
    assert len(theirs) == len(names)
    ours = [os.readlink(f"/proc/self/ns/{name}") for name in names]
    assert [a for a, b in zip(ours, theirs, strict=True) if a == b] == []
