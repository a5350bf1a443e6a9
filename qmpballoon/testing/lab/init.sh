#!/bin/busybox sh
# The guest's whole user space: loads the drivers, then runs what the host asks for.
#
# ttyS0 is the kernel's console and nobody else's; commands and answers go over
# ttyS1, so that no kernel message can get between them. A request is one line,
# "ID COMMAND", with newlines in the command as \n. An answer is a line "@ID STATUS",
# what the command printed, and a line "@end ID". (Marked and not counted, because
# busybox counts in characters.) "@ready RELEASE" says that requests are read from
# now on; a second one means that the guest was rebooted.

/bin/busybox --install -s /bin
export PATH=/lab:/bin LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /run/hogs

# When memory runs out the kernel must take a workload, not what reports on it.
echo -1000 >/proc/self/oom_score_adj
# A hog larger than memory is to meet the OOM killer, not a refused malloc.
echo 1 >/proc/sys/vm/overcommit_memory

for module in $(cat /lab/modules); do
    modprobe "$module" || echo "lab: cannot load $module" >/dev/console
done
if [ -e /lab/driver ]; then load-driver; else unload-driver; fi

# The last close of a block device drops its page cache: keep it open for ever.
if [ -e /dev/vda ]; then
    exec 3</dev/vda
    echo 4096 >/sys/block/vda/queue/read_ahead_kb
fi

answer() {
    output=$(
        echo 0 >/proc/self/oom_score_adj
        exec sh -c "$2" 2>&1 </dev/null 3<&- 5>&- 9>&-
    )
    status=$?
    # One answer after the other: who has the token writes.
    read -r _ <&9
    printf '@%s %s\n%s\n@end %s\n' "$1" "$status" "$output" "$1" >&5
    echo >&9
}

mkfifo /run/token
exec 9<>/run/token
echo >&9

serve() {
    exec 5<>/dev/ttyS1
    echo "@ready $(uname -r)" >&5
    while read -r id command <&5; do
        # The shell's read forgets what it has of a line when a child of its own
        # ends. So this one's children end at once; theirs are adopted by process 1.
        (answer "$id" "$(printf '%b' "$command")" &)
    done
}

stty -F /dev/ttyS1 raw -echo
serve &
# Reaps what it adopts, for ever.
wait
