"""Many VMs on one host: memory moves to where it is needed.

* :mod:`~qmpballoon.fleet.sources` finds the VMs: by sockets, by a file, by the
  QEMU processes that run.
* :mod:`~qmpballoon.fleet.supervisor` keeps in touch with all of them at once, and
  moves their balloons.
* :mod:`~qmpballoon.fleet.policy` decides what is moved. It is pure, so that every
  decision can be shown before it is carried out, simulated, and compared.
"""
