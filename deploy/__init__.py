"""The command-line tool `vcppo` and the local launcher. Starts processes; imports neither learner nor generator."""
