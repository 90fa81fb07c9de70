"""How good is the critic? Pure functions of arrays."""
