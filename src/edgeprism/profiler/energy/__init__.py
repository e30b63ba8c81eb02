"""Joules: the sensors that boards have, an estimate where there is none, and readings that say where they come from."""
