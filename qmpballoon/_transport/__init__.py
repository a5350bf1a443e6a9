"""What the doors share: sockets, deadlines, error messages, clocks, QEMU's process."""
