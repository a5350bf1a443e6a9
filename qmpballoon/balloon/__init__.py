"""What the library is for: asking guests for memory, and giving it back.

All of it is written against :class:`~qmpballoon.monitor.Monitor` and nothing
else, so it runs on every event loop, on none, and on a clock of a test's own.

- :mod:`~qmpballoon.balloon.balloon` finds a VM's balloon and speaks to it.
- :mod:`~qmpballoon.balloon.stats` is what the guest says of its memory.
- :mod:`~qmpballoon.balloon._resize` brings the balloon to a size, and tells
  whether it got there; :mod:`~qmpballoon.balloon._tracker` judges that.
- :mod:`~qmpballoon.balloon._reclaim` takes what the guest can spare, and no more;
  :mod:`~qmpballoon.balloon.guard` says what that is.
- :mod:`~qmpballoon.balloon.sampling` is what was seen on the way.
"""
