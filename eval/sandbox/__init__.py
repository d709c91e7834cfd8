"""Sandbox for untrusted programs: runs generated code against the tests of a benchmark.

    box = Sandbox.find()
    print(box.statement())
    box.run(Check("def f(x): return x + 1", "assert f(1) == 2")).passed

**Processes.** Each check gets its own sandbox with two processes. The *subject* executes the
solution. The *judge* executes the tests, and calls the solution's functions in the subject over two
pipes. Values cross as tagged bytes that carry no code (`wire`), so a solution can influence its
tests only through its answers. What it does to its own process (`builtins`, `__eq__`, `atexit`,
frames, signals, exit codes) never reaches them. The judge reports the outcome on a line that begins
with a random nonce. It reads the nonce from a pipe before the subject exists and keeps its memory
closed to other processes of its user (PR_SET_DUMPABLE). The subject inherits none of its files.

**Guarantees** of the rungs `bubblewrap` and `unshare`, which are found by trying them:

- Network: none, not even to this machine; only local sockets can be created.
- Files: /usr and the interpreter are readable; two small folders in memory are writable. No home
  folder, project file or /etc is visible. Nothing is left behind, and nothing is written outside.
- Environment: fixed, with five variables.
- Processes: outside processes cannot be seen or signalled. The whole process namespace is killed
  when its judge ends, when time is up, and when the process that started it dies, even by SIGKILL.
  (If that process is killed in the instant before its sandbox has asked to be killed with it, the
  sandbox lives on until its time is up.)
- Privileges: none, and no way to gain any (no-new-privileges, no capabilities; for root, each
  sandbox has its own user id, which belongs to no account). On x86_64 and aarch64, a filter
  restricts system calls.
- Limits: CPU time, address space, file size and open files of every process; the number of
  processes, and the memory of all together; and how much output is read from a sandbox.

**What is not covered.**

- Kernel vulnerabilities. Namespaces, and a filter that refuses the system calls of past ones, still
  share a kernel with you; a virtual machine does not.
- Side channels: time, caches, load. A program can see the machine's /proc (CPU, memory, uptime).
- A machine that other work keeps busy. A check that the wall clock stops while other checks run is
  run again when they are done. If it still gets too little CPU time then, it counts as timed out.
- Use within the limits: `workers` checks may each use this much memory and CPU time at once. CPU
  time is counted per process; a program with many processes can use all cores until the wall clock
  stops it. The memory of all processes together is checked ten times a second, and may exceed its
  limit for that long.
- What tests do. They are trusted, although they also run in the sandbox, and they judge answers
  only: where they call a helper of the solution (`Check.names`), the solution controls that
  helper's answers too.
- Solutions that are right by accident or memorised: answers for the tested arguments only, or an
  argument changed in place from which a test then takes its expectation.
- The rung `unprotected`, which is used only with `unsafe=True`. It has process limits and nothing
  else. A program can read and delete what you can, and as root it can forge its outcome.

**Differences from running a solution and its tests in one process.** Arguments and answers are
copied. Arguments that a solution changes in place are changed for the tests when it returns.
Iterators are read to their end, at most 100,000 values. Objects of the solution's own classes can
be passed back to it, but equal nothing and have no attributes. Globals of the solution that are
data are copied once. A global with the name of a builtin is used only if `Check.names` has it. Only
the standard library can be imported. Hashes and `random` start from fixed seeds.
"""

from dlm.eval.sandbox.box import Sandbox
from dlm.eval.sandbox.outcome import Limits, Outcome

__all__ = ["Limits", "Outcome", "Sandbox"]
