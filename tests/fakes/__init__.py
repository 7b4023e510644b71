"""Stand-ins for services that cannot be reached: they speak the wire format of the real ones."""
