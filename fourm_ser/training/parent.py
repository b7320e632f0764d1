"""A process that ends with the one that started it, however that ended."""

import os
import signal
import threading
import time

NAME = "ends with its parent"  # of the thread
AFTER = 10.0  # seconds that the process has to end by itself once it was told


def end_with_parent(every: float = 1.0) -> None:
    """Have this process told to end (SIGTERM) as soon as its parent is no more; `every` so many seconds it looks.

    A worker of joblib does its job to the end where its parent was killed, hours that nobody waits for any more.
    """
    if any(thread.name == NAME for thread in threading.enumerate()):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(AFTER)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name=NAME, daemon=True).start()
