"""Set the date in a PE file's header: ``_pe_date.py FILE SECONDS``. objcopy writes the present there.

The checksum, which covers the date, becomes zero: firmware does not look at it.
"""

import sys
from pathlib import Path

# Microsoft PE format: the signature's offset stands at 0x3c (u32), TimeDateStamp 8 bytes behind it (u32),
# CheckSum 88 bytes behind it (u32).
path = Path(sys.argv[1])
content = bytearray(path.read_bytes())
header = int.from_bytes(content[0x3C:0x40], "little")
if content[header : header + 4] != b"PE\0\0":
    sys.exit(f"{path}: not a PE file")
content[header + 8 : header + 12] = int(sys.argv[2]).to_bytes(4, "little")
content[header + 88 : header + 92] = bytes(4)
path.write_bytes(content)
