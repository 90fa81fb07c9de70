"""Programs that try to get out of the sandbox. Each prints TRIED first, and ESCAPED only if it got what it wanted.

`{…}` is filled in from the `Target`: things of the user who runs the tests, which is also the user a program runs as
where no layer changes that.
"""

from __future__ import annotations

from typing import NamedTuple

from vcppo.common.sandbox import Layer

LIBC = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True)\n"


class Attack(NamedTuple):
    """A program, and the layers each of which stops it alone."""

    source: str
    stopped_by: tuple[Layer, ...]


ATTACKS = {
    # network
    "tcp": Attack(
        "import socket; socket.create_connection(('127.0.0.1', {tcp_port}), 2); print('ESCAPED')",
        ("seccomp", "namespaces"),
    ),
    "udp": Attack(
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp_port}))\n"
        "print('ESCAPED')",
        ("seccomp", "namespaces"),
    ),
    "unix_socket": Attack(
        "import socket; socket.socket(socket.AF_UNIX).connect('{unix_path}'); print('ESCAPED')",
        ("seccomp", "namespaces", "user"),
    ),
    "abstract_socket": Attack(
        "import socket; socket.socket(socket.AF_UNIX).connect('\\0{abstract}'); print('ESCAPED')",
        ("seccomp", "namespaces"),
    ),
    "datagram_pair": Attack(
        "import socket; a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "a.sendto(b'x', '{datagram_path}'); print('ESCAPED')",
        ("seccomp", "namespaces", "user"),
    ),
    # files
    "secret": Attack("if 'swordfish' in open('{secret}').read(): print('ESCAPED')", ("landlock", "namespaces", "user")),
    "symlink_in_work_folder": Attack(
        "import os; os.symlink('{secret}', 'link')\nif 'swordfish' in open('link').read(): print('ESCAPED')",
        ("landlock", "namespaces", "user"),
    ),
    "work_folder_replaced": Attack(
        "import os; here = os.getcwd(); os.rename(here, here + '-moved'); os.symlink('/', here); print('ESCAPED')\n"
        "os.remove(here); os.rename(here + '-moved', here)",
        ("landlock", "namespaces", "user"),
    ),
    "dot_dot": Attack(
        "if 'swordfish' in open('../' * 20 + '{secret}'.lstrip('/')).read(): print('ESCAPED')",
        ("landlock", "namespaces", "user"),
    ),
    "environment_of_another": Attack(
        "if b'swordfish' in open('/proc/{victim}/environ', 'rb').read(): print('ESCAPED')",
        ("landlock", "namespaces", "user"),
    ),
    "write_outside": Attack("open('{folder}/planted', 'w'); print('ESCAPED')", ("landlock", "namespaces", "user")),
    "write_tmp": Attack(
        "import os; open('{public}/planted', 'w'); os.remove('{public}/planted'); print('ESCAPED')",
        ("landlock", "namespaces"),
    ),
    "write_dev_shm": Attack(
        "import os; open('/dev/shm/{abstract}', 'w'); os.remove('/dev/shm/{abstract}'); print('ESCAPED')",
        ("landlock", "namespaces"),
    ),
    "truncate_by_reading": Attack(
        "import os; os.open('{victims_file}', os.O_RDONLY | os.O_TRUNC); print('ESCAPED')",
        ("seccomp", "landlock", "namespaces", "user"),
    ),
    "chmod": Attack("import os; os.chmod('{secret}', 0o600); print('ESCAPED')", ("seccomp", "namespaces", "user")),
    # other processes
    "signal": Attack("import os; os.kill({victim}, 18); print('ESCAPED')", ("seccomp", "namespaces", "user")),
    "signal_by_descriptor": Attack(
        "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, {victim}); print('ESCAPED')",
        ("seccomp", "namespaces"),
    ),
    "signal_number_of_descriptor": Attack(
        "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETSIG, 9); print('ESCAPED')", ("seccomp",)
    ),
    "file_flags": Attack(  # FS_IOC_GETFLAGS, whatever the file system says to it
        LIBC + "flags = ctypes.c_long()\n"
        "if libc.ioctl(0, ctypes.c_ulong(0x80086601), ctypes.byref(flags)) == 0 or ctypes.get_errno() != 1: "
        "print('ESCAPED')",
        ("seccomp",),
    ),
    "ptrace": Attack(
        LIBC + "if libc.ptrace(0x4206, {victim}, 0, 0) == 0: print('ESCAPED')",
        ("seccomp", "landlock", "namespaces", "user"),
    ),
    "limits_of_another": Attack(
        "import resource; resource.prlimit({victim}, resource.RLIMIT_NOFILE, (100, 100)); print('ESCAPED')",
        ("seccomp", "namespaces", "user"),
    ),
    # the kernel
    "fork": Attack("import os; os.fork() or os._exit(0); os.wait(); print('ESCAPED')", ("seccomp",)),
    "user_namespace": Attack(LIBC + "if libc.unshare(0x10000000) == 0: print('ESCAPED')", ("seccomp",)),
    "user_namespace_by_clone": Attack(
        LIBC + "pid = libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)\n"
        "if pid == 0: os._exit(0)\nif pid > 0: os.wait(); print('ESCAPED')",
        ("seccomp",),
    ),
    "unlimited_memory": Attack("import os; os.memfd_create('x'); print('ESCAPED')", ("seccomp",)),
    "system_v_memory": Attack(
        LIBC + "segment = libc.shmget(0, 4096, 0o1600)\n"
        "if segment >= 0: libc.shmctl(segment, 0, None); print('ESCAPED')",
        ("seccomp",),
    ),
    "memory_of_another": Attack(
        LIBC + "if libc.shmget({shared_memory}, 0, 0o600) >= 0: print('ESCAPED')", ("seccomp", "namespaces", "user")
    ),
    "io_uring": Attack(  # whatever the kernel says to it, but "not permitted"
        LIBC + "made = libc.syscall(425, 4, ctypes.create_string_buffer(120))\n"
        "if made >= 0 or ctypes.get_errno() != 1: print('ESCAPED')",
        ("seccomp",),
    ),
    "32_bit_calls": Attack(
        "import ctypes, mmap; page = mmap.mmap(-1, 4096, prot=7)\n"
        "page.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, getpid of i386; int 0x80; ret
        "call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))\n"
        "if call() > 0: print('ESCAPED')",
        ("seccomp",),
    ),
    "survive_the_keeper": Attack(
        LIBC + "if libc.prctl(1, 0, 0, 0, 0) == 0: print('ESCAPED')",  # PR_SET_PDEATHSIG off
        ("seccomp",),
    ),
}
