"""A wall clock that jumps for the processes of some hosts: a few lines of C before libc's own, which read an offset.

What counts seconds by the monotonic clock does not notice, and that is what is tested.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

VARIABLE = "SHARDWISE_CLOCK_FILE"
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

/* Seconds that the wall clock is ahead by, in a file that tests write into while we run. */
static volatile long *offset(void) {
    static volatile long none = 0, *found = 0;
    if (!found) {
        const char *path = getenv("SHARDWISE_CLOCK_FILE");
        int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        void *place = file < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        found = place == MAP_FAILED ? &none : place;
    }
    return found;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(now, zone);
    if (!result && now) now->tv_sec += *offset();
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


def why_no_jumps() -> str:
    """Why no clock can jump here; empty where one can."""
    return "" if shutil.which("cc") else "no C compiler, which the jumping clock is built with"


def environment(folder: Path) -> dict[str, str]:
    """What the processes of a host need from their start on for its clock to jump; nothing where none can."""
    if why_no_jumps():
        return {}
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_SOURCE)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    jump([folder], 0)
    return {"LD_PRELOAD": str(library), VARIABLE: str(folder / "clock")}


def jump(folders: list[Path], seconds: int) -> None:
    """From now on the wall clocks of these hosts are so far ahead of the real one."""
    for folder in folders:
        path = folder / "clock"
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))
