"""What runs only when it is named: it takes too long for `make bench`, or answers another question."""
