"""What the front ends share: sockets, deadlines, errors, clocks, QEMU's process."""
