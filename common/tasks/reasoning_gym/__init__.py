"""The task `reasoning_gym`: procedural problems of the library of that name, each with its own graded scorer."""
