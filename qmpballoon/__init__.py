"""Drive QEMU's virtio-balloon straight over the QMP monitor socket."""

__version__ = "0.1.0"
