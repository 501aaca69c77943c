"""The program cosmian_vm_agent. It serves evidence and takes orders; it never judges itself."""
