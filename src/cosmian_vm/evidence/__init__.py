"""What the machine says: bytes to frozen values and back. Nothing here judges, nothing here does I/O."""
