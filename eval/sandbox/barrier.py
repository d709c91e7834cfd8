"""A seccomp filter for system calls that no solution needs and that kernel exploits have used.

They fail with EPERM, permanently, for this process and all processes that it starts. Namespaces are
the first barrier. This one removes ways around them: no namespaces, mounts or debugging of the
program's own; no sockets except local ones (AF_VSOCK leads out of a network namespace); and no
memory outside any process, which the memory watch would miss.
"""

import ctypes
import os
import struct

LOAD, JUMP_EQUAL, JUMP_LEAST, JUMP_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, ABSENT = 0x7FFF0000, 0x00050001, 0x00050026  # EPERM; ENOSYS, to force a fallback
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets into the data that a filter sees
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2  # of prctl
NEW_NAMESPACES = 0x7E020080  # CLONE_NEW*
LOCAL = 1  # AF_UNIX
X32 = 0x40000000  # another numbering of the same calls

REFUSED = {
    # name: number on x86_64, on aarch64; -1 if it does not exist there
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "mknod": (133, -1),
    "mknodat": (259, 33),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "personality": (135, 92),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "modify_ldt": (154, -1),
}
MACHINES = {
    # name: its column above, its number, and the numbers of socket, clone and clone3
    "x86_64": (0, 0xC000003E, 41, 56, 435),
    "aarch64": (1, 0xC00000B7, 198, 220, 435),
}


def known() -> bool:
    """Whether there is a filter for this machine."""
    return os.uname().machine in MACHINES


def program(machine: str) -> bytes:
    """The filter program of a machine."""
    column, architecture, socket, clone, clone3 = MACHINES[machine]
    steps = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, NUMBER),
        (JUMP_LEAST, 0, 1, X32),
        (RETURN, 0, 0, REFUSE),
    ]
    for numbers in REFUSED.values():
        if numbers[column] >= 0:
            steps += [(JUMP_EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, REFUSE)]
    # The flags of clone3 are in memory, where a filter cannot look, so callers must fall back to
    # clone.
    steps += [(JUMP_EQUAL, 0, 1, clone3), (RETURN, 0, 0, ABSENT)]
    steps += [(JUMP_EQUAL, 0, 4, socket), (LOAD, 0, 0, FIRST_ARGUMENT)]
    steps += [(JUMP_EQUAL, 1, 0, LOCAL), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    steps += [(JUMP_EQUAL, 0, 3, clone), (LOAD, 0, 0, FIRST_ARGUMENT)]
    steps += [(JUMP_BITS, 0, 1, NEW_NAMESPACES), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def raise_barrier() -> None:
    """Install the filter, if there is one for this machine.

    Raises:
        OSError: the kernel refuses it.
    """
    if not known():
        return
    text = program(os.uname().machine)
    held = ctypes.create_string_buffer(text, len(text))
    header = struct.pack("@HP", len(text) // 8, ctypes.addressof(held))
    named = ctypes.create_string_buffer(header, len(header))  # both must outlive the call
    call = ctypes.CDLL(None, use_errno=True).prctl
    ask(call, NO_NEW_PRIVILEGES, 1)
    ask(call, SECCOMP, FILTER, ctypes.addressof(named))


def ask(call: "ctypes._NamedFuncPointer", option: int, *arguments: int) -> None:
    """Make one prctl call.

    Raises:
        OSError: the kernel refuses it.
    """
    words = [ctypes.c_ulong(each) for each in (*arguments, 0, 0, 0, 0)[:4]]
    if call(option, *words) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} was refused")
