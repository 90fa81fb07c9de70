"""`vcppo chaos`: a real run, faults drawn by a seed, and the proof afterwards that nothing was lost."""
