"""What is this file, what does it say, is it authentic: the work behind ``cosmian_vm inspect``. Pure."""
