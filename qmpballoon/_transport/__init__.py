"""What the doors to QEMU share: sockets, deadlines, the words for failures, /proc."""
