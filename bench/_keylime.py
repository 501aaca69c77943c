"""Runs under a Python that has keylime: processes an ASCII list against a policy each time it is told to.

Arguments: the ASCII list, the policy (JSON: path to list of digests), the expected PCR 10 (hex, SHA-256 bank). For
each line on stdin it answers with the seconds that one processing took.
"""

# mypy: ignore-errors
from __future__ import annotations

import json
import logging
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

if find_spec("gpg") is None:
    # Only signed policies need it, and it is not to be had without the headers of libgpgme.
    sys.modules["gpg"] = ModuleType("gpg")

from keylime.common.algorithms import Hash
from keylime.ima import ima


def main() -> None:
    """Answer until stdin ends."""
    logging.disable(logging.CRITICAL)
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    policy = ima.empty_policy()
    policy["digests"] = json.loads(Path(sys.argv[2]).read_bytes())
    for _ in sys.stdin:
        start = time.process_time()
        _, failure = ima.process_measurement_list(None, lines, policy, pcrval=sys.argv[3], hash_alg=Hash.SHA256)
        seconds = time.process_time() - start
        if failure:
            sys.exit(f"keylime found a failure: {failure.events[:3]}")
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
