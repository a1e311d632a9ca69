"""A program for pods without libraries that answers on the sockets it is given."""

import subprocess
from pathlib import Path

# It tells each connection on each socket from descriptor 3 on which one that is, and all their names.
SOURCE = r"""
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
static int closed(int fd) { return fcntl(fd, F_GETFD) < 0; }
static void end(int number) { _exit(0); }
static const char *word(const char *name) { return getenv(name) ? getenv(name) : "-"; }
int main(void) {
    int count = atoi(word("LISTEN_FDS"));
    struct pollfd at[32];
    signal(SIGTERM, end);
    for (int i = 0; i < count && i < 32; i++) at[i] = (struct pollfd){.fd = 3 + i, .events = POLLIN};
    printf("%d %d\n", getpid() == atoi(word("LISTEN_PID")), closed(3 + count));
    fflush(stdout);
    while (poll(at, count, -1) > 0)
        for (int i = 0; i < count; i++)
            if (at[i].revents & POLLIN) {
                int peer = accept(at[i].fd, 0, 0);
                dprintf(peer, "%d of %s\n", i, word("LISTEN_FDNAMES"));
                close(peer);
            }
    return 1;
}
"""


def compiled(folder: Path, name: str = "answer") -> Path:
    """Make the program; it prints `1 1` when LISTEN_PID is its own and no further descriptor is open."""
    source = folder / f"{name}.c"
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-static", "-o", folder / name, source], check=True)
    source.unlink()
    return folder / name
