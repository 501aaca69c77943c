"""How evidence is collected: the devices of this machine."""
