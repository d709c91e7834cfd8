"""Programs that reach for the judge, for rights and for the machine: they get nothing."""

from collections.abc import Callable

import pytest

from dlm.eval.sandbox import Outcome

Run = Callable[..., Outcome]
PASSED = {"passed"}  # the tests hold only if the program could do nothing
ANY = {"failed", "error", "timed out", "out of memory", "killed", "unreadable"}
HEX = "[0-9a-f]{32}"  # what a nonce looks like
Attacks = dict[str, tuple[str, str, set[str]]]

# A solution, its tests, and how that may end.
ATTACKS: Attacks = {
    "killing everything": (
        """
        import os, signal
        def f(x):
            for pid in (-1, 1, os.getppid()):
                try: os.kill(pid, signal.SIGKILL)
                except OSError: pass
            os.killpg(0, signal.SIGKILL)
        """,
        "assert f(1) == 2",
        ANY,
    ),
    "daemons": (
        """
        import os, time
        def f():
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        for fd in range(64):
                            try: os.close(fd)
                            except OSError: pass
                        os.execv("/usr/bin/sleep", [MARKER, "1000"])
                    os._exit(0)
            time.sleep(0.3)
            return sum(MARKER in open(f"/proc/{p}/cmdline").read() for p in os.listdir("/proc")
                       if p.isdigit() and p != "1")
        """,
        "assert f() == 3",
        PASSED,
    ),
    "the root folder": (
        "import os\ndef f(): return os.listdir('/')",
        "assert set(f()) <= set('bin sbin lib lib32 lib64 libx32 usr dev proc tmp'.split())",
        PASSED,
    ),
    "processes outside": (
        "import os\ndef f(): return [int(each) for each in os.listdir('/proc') if each.isdigit()]",
        "assert len(f()) <= 3 and max(f()) < 100",
        PASSED,
    ),
    "the judge's memory": (
        """
        import os
        def f():
            opened = []
            for pid in [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]:
                for name in ("mem", "environ", "maps", "auxv", "syscall", "stack"):
                    try: open(f"/proc/{pid}/{name}", "rb").read(1); opened.append((pid, name))
                    except OSError: pass
                for name in ("fd", "fdinfo", "map_files"):
                    try: opened += [(pid, each) for each in os.listdir(f"/proc/{pid}/{name}")]
                    except OSError: pass
                for name in ("cwd", "root", "exe"):
                    try: opened.append(os.readlink(f"/proc/{pid}/{name}"))
                    except OSError: pass
                with open(f"/proc/{pid}/cmdline") as told:
                    import re
                    opened += re.findall("HEX", told.read())
            return opened
        """.replace("HEX", HEX),
        "assert f() == [], f()",
        PASSED,
    ),
    "debugging the judge": (
        """
        import ctypes, os
        def f():
            call = ctypes.CDLL(None, use_errno=True)
            done = []
            for pid in [int(p) for p in os.listdir("/proc") if p.isdigit()]:
                if pid == os.getpid(): continue
                for request in (16, 0x4206):  # attach, seize
                    if call.ptrace(request, pid, 0, 0) != -1: done.append((request, pid))
                block = ctypes.create_string_buffer(8)
                vector = (ctypes.c_void_p * 2)(ctypes.addressof(block), 8)
                if call.process_vm_readv(pid, vector, 1, vector, 1, 0) != -1: done.append(pid)
                other = call.syscall(434, pid, 0)  # pidfd_open, pidfd_getfd
                if other >= 0 and call.syscall(438, other, 1, 0) != -1: done.append(("fd", pid))
            return done
        """,
        "assert f() == [], f()",
        PASSED,
    ),
    "the nonce in memory": (
        """
        import gc, os, re, sys
        PLANTED = "5a" * 16
        def f():
            seen = []
            frame = sys._getframe()
            while frame is not None:
                seen += [*frame.f_locals.values(), *frame.f_globals.values()]
                frame = frame.f_back
            text = " ".join(map(repr, [*gc.get_objects(), *seen, dict(os.environ), sys.argv]))
            with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
                for line in maps:
                    first, last = (int(each, 16) for each in line.split()[0].split("-"))
                    try: memory.seek(first); text += memory.read(last - first).decode("latin1")
                    except (OSError, ValueError, OverflowError): pass
            return set(re.findall("[0-9a-f]{32}", text))
        """,
        """
import sys
frame = sys._getframe()
while "task" not in frame.f_locals:
    frame = frame.f_back
nonce, found = frame.f_locals["task"]["nonce"], f()
assert len(nonce) == 32 and nonce not in found and "5a" * 16 in found
""",
        PASSED,
    ),
    "the python replaced": (
        """
        import os, sys
        def f():
            done = []
            for path in (sys.executable, os.path.realpath(sys.executable), os.__file__,
                         "/usr/bin/x", "/bin/sh", "/proc/1/exe"):
                for mode in ("r+b", "wb", "ab"):
                    try: open(path, mode).close(); done.append((path, mode))
                    except OSError: pass
                for change, more in ((os.unlink, ()), (os.chmod, (0o777,)), (os.rename, ("x",))):
                    try: change(path, *more); done.append(path)
                    except OSError: pass
            return done
        """,
        "assert f() == [], f()",
        PASSED,
    ),
    "modules of its own": (
        """
        import sys
        for folder in {"/tmp", ".", *sys.path}:
            for name in ("math", "random", "copy", "heapq"):
                try: open(f"{folder}/{name}.py", "w").write("def sqrt(x): return 2\\nfabs = sqrt")
                except OSError: pass
        def f(x): return 3
        """,
        "import heapq, copy, random, math\nassert math.sqrt(f(1)) == 2 and heapq.heapify",
        {"failed"},
    ),
    "rights": (
        """
        import ctypes, os
        def f():
            call = ctypes.CDLL(None)
            done = []
            for name, act in {
                "setuid": lambda: call.setuid(0), "chroot": lambda: call.chroot(b"/tmp"),
                "mount": lambda: call.mount(b"x", b"/tmp", b"tmpfs", 0, 0),
                "umount": lambda: call.umount2(b"/tmp", 2),
                "remount": lambda: call.mount(b"x", b"/usr", b"x", 32 | 4096, 0),
                "setns": lambda: call.setns(os.open("/proc/self/ns/net", 0), 0),
                "hostname": lambda: call.sethostname(b"x", 1),
                "mknod": lambda: call.mknod(b"/tmp/disk", 0o60666, 0xFE00),
            }.items():
                if act() == 0: done.append(name)
            status = open("/proc/self/status").read()
            if "NoNewPrivs:\\t1" not in status or "CapEff:\\t0000000000000000" not in status:
                done.append("rights")
            return done
        """,
        "assert f() in ([], ['setns']), f()",
        PASSED,
    ),
    "a namespace of its own": (
        """
        import ctypes
        def f(): return ctypes.CDLL(None).unshare(0x10000000 | 0x20000)
        """,
        "assert f() == -1",
        PASSED,
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gains_nothing(attacked: Run, name: str) -> None:
    solution, tests, kinds = ATTACKS[name]
    outcome = attacked(solution, tests)
    assert outcome.kind in kinds, outcome
    assert outcome.passed == (outcome.kind == "passed")
    assert len(outcome.detail) <= 300
