"""Runs programs that nobody has read: generated code against the tests of a benchmark.

    box = Sandbox.find()
    print(box.statement())
    box.run(Check("def f(x): return x + 1", "assert f(1) == 2")).passed

**Who is who.** Each check gets a sandbox of its own with two processes in it. The *subject*
executes the solution. The *judge* executes the tests and calls the solution's functions in the
subject over two pipes. Values cross as tagged bytes that carry no code (`wire`), so a solution can
only do one thing to its tests: answer. What it does to its own process (`builtins`, `__eq__`,
`atexit`, frames, signals, exit codes) never reaches them. The judge says how it went on a line
that begins with a random nonce. It reads the nonce from a pipe before the subject exists, keeps
its memory closed to other processes of its user (PR_SET_DUMPABLE), and the subject inherits none
of its files.

**What holds** in the rungs `bubblewrap` and `unshare`, which are found by trying them:

- network: none, not even to this machine; only local sockets can be made
- files: /usr and the interpreter, to read; two small folders in memory, to write. Nothing of any
  home, of the project, of /etc; nothing of it is left afterwards, and nothing is written outside
- environment: a fixed one of five names
- processes: none outside can be seen or signalled; a process namespace is killed as a whole when
  its judge ends, when time is up, and when the process that started it dies, by SIGKILL too (one
  that is killed in the instant before its sandbox asked for that leaves it until its time is up)
- rights: none, and no way to get any (no-new-privileges, no capabilities; as root a user id of
  its own for every sandbox, which no account has); on x86_64 and aarch64 a filter of system calls
- CPU time, address space, file size and open files of every process, their number, and the
  memory of all together; what is read from a sandbox

**What is not covered.**

- Holes in the kernel. Namespaces, and a filter that refuses what past holes were in, share a
  kernel with you; a virtual machine does not.
- Side channels: time, caches, load. A program can see the machine's /proc (CPU, memory, uptime).
- A machine that others keep busy. A check that the wall clock stops beside other checks is run
  again when they are done; one that is then still given too little CPU time is timed out.
- Use within the limits: `workers` times so much memory and CPU time at once. CPU time is counted by
  process; a program of many processes can use all cores until the wall clock stops it. The memory
  of all together is looked at ten times a second, and may be passed for that long.
- What tests do. They are trusted, run in the sandbox all the same, and judge answers only: where
  they call a helper of the solution (`Check.names`), the solution can answer for that too.
- Ways to be right by accident or by heart: answers for the tested arguments only, or an argument
  changed in place that a test then takes its expectation from.
- The rung `unprotected`, which is taken only with `unsafe=True`: limits of a process and nothing
  else. A program can read and delete what you can, and as root it can forge its outcome.

**What differs from running a solution and its tests in one process.** Arguments and answers are
copied; arguments that a solution changes in place are changed for the tests when it returns.
Iterators are read to their end, at most 100,000 values. Objects of the solution's own classes can
be passed back to it, but equal nothing and have no attributes. Globals of the solution that are
data are copied once. A global that is named like a builtin counts only where `Check.names` has it.
Only the standard library can be imported. Hashes and `random` start from fixed seeds.
"""

from dlm.eval.sandbox.box import Sandbox
from dlm.eval.sandbox.outcome import Limits, Outcome

__all__ = ["Limits", "Outcome", "Sandbox"]
