"""Interfaces of other packages, on the operators of this one."""
