"""Checks of `vcppo check`: what one is, and the child process that runs them."""
