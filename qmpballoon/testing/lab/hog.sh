#!/bin/sh
# hog BYTES: hold that much touched anonymous memory, until `release`.
#
# dd reads zeroes into a buffer of BYTES, which touches every page of it, and then
# blocks on a pipe that nobody empties: one process whose memory is its own, that
# the OOM killer can take. Returns when the memory is there; 137 if it was taken.
fifo=/run/hogs/$$
mkfifo "$fifo"
dd if=/dev/zero bs="$1" count=1 1<>"$fifo" 2>/dev/null &
hog=$!
echo "$hog" >>/run/hogs/pids
until [ "$(timeout 1 head -c 1 <>"$fifo" | wc -c)" = 1 ]; do
    # Before it is a zombie, its memory has been freed.
    grep -q '^State:.[^ZX]' "/proc/$hog/status" 2>/dev/null || exit 137
done
