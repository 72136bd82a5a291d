"""What holds for all tests: how examples are found, and that Ctrl-C reaches the processes that tests start.

Property tests have no deadline (the first call of a kernel compiles it) and, in CI, the same examples every time. A job
in the background of a script ignores Ctrl-C, and so would everything it starts.
"""

import os
import signal

from hypothesis import settings

settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
