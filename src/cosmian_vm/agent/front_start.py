"""What the collector executes to start the front: ``front_start.py CONTROL LISTENER PARENT PATH``.

``CONTROL`` and ``LISTENER`` are inherited descriptors, ``PARENT`` the collector's process, ``PATH`` where Python finds
modules, as the collector does. Nothing of it is a secret.
"""

import gc
import os
import sys

__all__ = ["main"]


def main() -> int:
    """Find the modules, then be the front. Its exit status."""
    control, listener, parent, path = sys.argv[1:]
    sys.path[:] = path.split(os.pathsep)
    gc.disable()  # modules leave no cycles: to look for them while they are loaded takes its time
    from cosmian_vm.agent import front_process

    gc.freeze()
    gc.enable()
    return front_process.main(int(control), int(listener), int(parent))


if __name__ == "__main__":
    sys.exit(main())
