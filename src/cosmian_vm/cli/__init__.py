"""The program cosmian_vm: a file per command."""
